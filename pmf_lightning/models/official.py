"""The released PyTorch weights of pMF, read into our backbone: names are mapped, nothing is skipped in silence."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pmf_lightning.errors import UserError
from pmf_lightning.models.vit import ViT

# Ours -> theirs, tried in order on the whole name.
_RULES = [
    (r"patch_embedding\.patches\.", "x_embedder.proj1."),
    (r"patch_embedding\.expand\.", "x_embedder.proj2."),
    (r"positions\.weight", "pos_embed"),
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
]
_OPTIONAL = re.compile(r"v_heads\.|v_final_layer\.")  # absent in the released inference files
_RECOMPUTED = {"rope_freqs"}


def official_name(name: str) -> str:
    """Return the name that the official pMF PyTorch files give to our weight ``name``."""
    for ours, theirs in _RULES:
        name = re.sub(ours, theirs, name)
    return name


def load_official(state_dict_or_path: Mapping[str, Tensor] | str | Path, network: ViT) -> ViT:
    """Load official pMF weights into ``network`` in place and return it.

    Takes a flat state dict, or the path of a .pt file (read without executing pickled code). Keys may carry the prefix
    ``net.``; the v-heads and the final v layer may be absent and then keep their values; the RoPE buffer is ignored.

    Raises UserError that lists every other missing or unexpected key and every shape that differs.
    """
    weights = _read(state_dict_or_path)
    weights = {key.removeprefix("net."): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if key not in _RECOMPUTED}
    expected = {official_name(name): (name, value) for name, value in network.state_dict().items()}
    missing = [key for key in expected if key not in weights and not _OPTIONAL.match(key)]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key][1].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key][1].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(names for _, names in problems):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems if names)
        raise UserError(f"these are not the official pMF weights of this network ({listed}); choose the model they fit")
    network.load_state_dict({expected[key][0]: value for key, value in weights.items()}, strict=False)
    return network


def _read(source: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise UserError(f"official weights {path} do not exist; give the path of a pMF-*.pt file")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"official weights {path} cannot be read ({type(error).__name__}); is it a .pt file?"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"official weights {path} are not a flat dictionary of tensors; give a pMF-*.pt file")
    return weights
