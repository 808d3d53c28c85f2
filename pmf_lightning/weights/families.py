"""Weight formats of the released PyTorch files (pMF, iMF, JiT): official names and shapes for our weights.

A file of JiT is a training checkpoint: three sets of weights (SETS in read.py), the optimizer's state, and the
arguments of its run. No file of size G is released.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pmf_lightning.models.jit_vit import JiTViT
from pmf_lightning.models.positions import sincos_2d

SAME = 0.01  # tolerance of fixed values: the error of bfloat16 is 0.004
TRAINED = 0.5  # largest L2 distance of a trained position table from its start, relative to that of the other order


def _nothing(network: nn.Module) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class WeightFormat:
    """Official file format of one family of models. Official names are without the prefix ``net.``.

    Args:
        name: name of the family in the paper.
        rules: pairs (pattern of our name, official name), all applied in order to the full name.
        mark: official name of a weight that identifies the family.
        patches: official name of the first patch convolution.
        norm: official name of a vector whose length is the width.
        table: official name of the class table.
        stacks: a pattern for each stack of blocks on the path to u; it matches one weight per block, group 1 is the
            block's number.
        flat_tokens: learned tokens are [n, width]; ours are [1, n, width].
        recomputed: official buffers without learned values, which are ignored.
        fixed: values in the files that the network does not learn, by official name; the file's must be equal.
        keeps_v_layer: files without v-heads still hold their final layer.
        head_v: training files hold a head v, sampling files do not.
        models: (width, blocks on the path to u, patch) of each size of the papers, and of its presets at other patches.
    """

    name: str
    rules: tuple[tuple[str, str], ...]
    mark: str
    patches: str
    norm: str
    table: str
    stacks: tuple[str, ...]
    flat_tokens: bool
    recomputed: frozenset[str]
    keeps_v_layer: bool
    head_v: bool
    models: Mapping[str, tuple[int, int, int]]
    fixed: Callable[[nn.Module], dict[str, Tensor]] = _nothing

    def official_name(self, name: str) -> str:
        """Return the official name of our weight ``name``, without the prefix ``net.``."""
        for ours, theirs in self.rules:
            name = re.sub(ours, theirs, name)
        return name

    def to_official(self, name: str, value: Tensor) -> Tensor:
        """Return our weight ``name``, or its gradient, in the official shape."""
        return value.squeeze(0) if self.flat_tokens and _is_tokens(name) else value

    def from_official(self, name: str, value: Tensor) -> Tensor:
        """Return the official value of our weight ``name`` in our shape."""
        return value.unsqueeze(0) if self.flat_tokens and _is_tokens(name) else value


def preset(model: str) -> str:
    """Return the preset (``model=``) of a model's name in the papers: pmf_b16 for pMF-B/16."""
    return model.lower().replace("-", "_").replace("/", "")


def _is_tokens(name: str) -> bool:
    return name.endswith(".tokens.weight")


def fixed(network: JiTViT) -> dict[str, Tensor]:
    """Return JiT's position table as the official code computes it, unless the network learns its own."""
    return {} if network.positions is not None else {"pos_embed": position_table(network.grid, network.width)}


def position_table(grid: int, width: int) -> Tensor:
    """Return the table [1, grid^2, width] in float32, computed in float64 on the CPU."""
    return sincos_2d(grid, width, torch.empty(0, dtype=torch.float64)).float()


def positions_are_trained(weights: Mapping[str, Tensor]) -> bool:
    """Whether official weights of JiT (names without ``net.``) hold a position table that was trained.

    Post-training by FD-loss trains it (--learned_pe). Such a table is near the sine-cosine table; one that is far from
    it (half as far as the table with rows before columns), or not finite, is another table. A table on the meta device
    counts as the fixed one.
    """
    table = weights.get("pos_embed")
    if JIT.mark not in weights or table is None or table.ndim != 3 or table.is_meta:
        return False
    grid = math.isqrt(table.shape[1])
    if grid**2 != table.shape[1] or table.shape[2] % 4:
        return False
    start = position_table(grid, table.shape[2])
    moved = table.cpu().float() - start
    other = start.roll(start.shape[2] // 2, dims=2) - start
    return bool(moved.abs().max() > SAME and moved.norm() < TRAINED * other.norm())


JIT = WeightFormat(
    name="JiT",
    rules=(
        (r"patch_embedding\.patches\.", "x_embedder.proj1."),
        (r"patch_embedding\.expand\.", "x_embedder.proj2."),
        (r"conditions\.label\.table\.", "y_embedder.embedding_table."),
        (r"conditions\.t\.mlp_in\.", "t_embedder.mlp.0."),
        (r"conditions\.t\.mlp_out\.", "t_embedder.mlp.2."),
        (r"^positions\.weight", "pos_embed"),
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
    mark="in_context_posemb",  # the patch convolution has the same name in pMF
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

RULES = (
    (r"conditions\.label\.tokens\.weight", "class_tokens"),
    (r"conditions\.label\.table\.", "y_embedder.embedding_table._flax_embedding."),
    (r"conditions\.h\.tokens\.weight", "time_tokens"),
    (r"conditions\.(\w+)\.tokens\.weight", r"\1_tokens"),
    (r"conditions\.t_min\.", "cfg_t_start_embedder."),
    (r"conditions\.t_max\.", "cfg_t_end_embedder."),
    (r"conditions\.(\w+)\.", r"\1_embedder."),
    (r"mlp_in\.", "mlp.0._flax_linear."),
    (r"mlp_out\.", "mlp.2._flax_linear."),
    (r"heads\.(\w)\.blocks\.", r"\1_heads."),
    (r"heads\.(\w)\.norm\.", r"\1_final_layer.norm."),
    (r"heads\.(\w)\.out\.", r"\1_final_layer.linear._flax_linear."),
    (r"trunk\.", "shared_blocks."),
    (r"attention_norm\.", "norm1."),
    (r"mlp_norm\.", "norm2."),
    (r"attention_gate\.weight", "attn_scale"),
    (r"mlp_gate\.weight", "mlp_scale"),
    (r"attention\.(q|k)_norm\.", r"attn.\1_norm."),
    (r"attention\.(q|k|v|out)\.", r"attn.\1_proj._flax_linear."),
    (r"\.mlp\.(w\d)\.", r".mlp.\1._flax_linear."),
)

NORM = "u_final_layer.norm.weight"

TABLE = "y_embedder.embedding_table._flax_embedding.weight"

STACKS = tuple(rf"{stack}\.(\d+)\.attn\.q_proj\._flax_linear\.weight" for stack in ("shared_blocks", "u_heads"))

IMF = WeightFormat(
    name="iMF",
    rules=((r"patch_embedding\.patches\.", "x_embedder.proj."), *RULES),
    mark="x_embedder.proj.weight",
    patches="x_embedder.proj.weight",
    norm=NORM,
    table=TABLE,
    stacks=STACKS,
    flat_tokens=True,
    recomputed=frozenset(),
    keeps_v_layer=True,
    head_v=True,
    models={
        "iMF-B/2": (768, 12, 2),
        "iMF-M/2": (768, 24, 2),
        "iMF-L/2": (1024, 32, 2),
        "iMF-XL/2": (1024, 48, 2),
        "iMF-B/16": (768, 12, 16),
        "iMF-M/16": (768, 24, 16),
        "iMF-L/16": (1024, 32, 16),
        "iMF-XL/16": (1024, 48, 16),
    },
)

PMF = WeightFormat(
    name="pMF",
    rules=(
        (r"patch_embedding\.patches\.", "x_embedder.proj1."),
        (r"patch_embedding\.expand\.", "x_embedder.proj2."),
        (r"positions\.weight", "pos_embed"),
        *RULES,
    ),
    mark="x_embedder.proj1.weight",
    patches="x_embedder.proj1.weight",
    norm=NORM,
    table=TABLE,
    stacks=STACKS,
    flat_tokens=False,
    recomputed=frozenset({"rope_freqs"}),
    keeps_v_layer=False,
    head_v=True,
    models={
        "pMF-B/4": (768, 16, 4),
        "pMF-B/16": (768, 16, 16),
        "pMF-B/32": (768, 16, 32),
        "pMF-B/64": (768, 16, 64),
        "pMF-L/16": (1024, 32, 16),
        "pMF-L/32": (1024, 32, 32),
        "pMF-H/16": (1280, 48, 16),
        "pMF-H/32": (1280, 48, 32),
    },
)
