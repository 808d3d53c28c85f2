"""The PyTorch files of JiT (arXiv 2511.13720): checkpoint-last.pth of the official training code.

Such a file is a training checkpoint: three sets of weights (SETS in reading.py), the optimiser's state, and the
arguments of its run. No file of size G is released.
"""

import torch
from torch import Tensor

from pmf_lightning.models.jit_vit import JiTViT
from pmf_lightning.models.official.names import Family
from pmf_lightning.models.sincos import sincos_2d


def fixed(network: JiTViT) -> dict[str, Tensor]:
    """Return the table of positions, computed as the official code does: in float64, kept in float32, on the CPU."""
    return {"pos_embed": sincos_2d(network.grid, network.width, torch.empty(0, dtype=torch.float64)).float()}


JIT = Family(
    name="JiT",
    rules=(
        (r"patch_embedding\.patches\.", "x_embedder.proj1."),
        (r"patch_embedding\.expand\.", "x_embedder.proj2."),
        (r"conditions\.label\.table\.", "y_embedder.embedding_table."),
        (r"conditions\.t\.mlp_in\.", "t_embedder.mlp.0."),
        (r"conditions\.t\.mlp_out\.", "t_embedder.mlp.2."),
        (r"context\.weight", "in_context_posemb"),
        (r"heads\.u\.norm\.", "final_layer.norm_final."),
        (r"heads\.u\.out\.", "final_layer.linear."),
        (r"heads\.u\.", "final_layer."),
        (r"trunk\.", "blocks."),
        (r"attention_norm\.", "norm1."),
        (r"mlp_norm\.", "norm2."),
        (r"\.attention\.", ".attn."),
        (r"modulation\.", "adaLN_modulation.1."),
    ),
    mark="in_context_posemb",  # the name of the patch convolution is pMF's too
    patches="x_embedder.proj1.weight",
    norm="final_layer.norm_final.weight",
    table="y_embedder.embedding_table.weight",
    stacks=(r"blocks\.(\d+)\.attn\.qkv\.weight",),
    flat_tokens=False,
    recomputed=frozenset(),
    fixed=fixed,
    keeps_v_layer=False,
    head_v=False,
    models={
        "JiT-B/16": (768, 12, 16),
        "JiT-B/32": (768, 12, 32),
        "JiT-B/64": (768, 12, 64),
        "JiT-L/16": (1024, 24, 16),
        "JiT-L/32": (1024, 24, 32),
        "JiT-H/16": (1280, 32, 16),
        "JiT-H/32": (1280, 32, 32),
        "JiT-G/16": (1664, 40, 16),
        "JiT-G/32": (1664, 40, 32),
    },
)
