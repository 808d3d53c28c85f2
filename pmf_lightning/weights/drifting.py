"""Convert the released weights of Drifting's generators (arXiv 2602.04770, flax) to our DriftingViT and back.

Names are mapped. Matrices are transposed from flax's layout to torch's ([in, out] to [out, in]); the patch matrix, over
(row, column, colour), becomes a convolution kernel. No weight is skipped silently.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pmf_lightning.models.drifting_vit import DriftingViT
from pmf_lightning.utils.errors import UserError
from pmf_lightning.weights import flax
from pmf_lightning.weights.flax import read_msgpack

_TRUNK = "LightningDiT_0/"
_STYLE = "conditions.style.table.weight"  # one table here, several in the official file
_PATCHES = "patch_embedding.patches.weight"
_RULES = (  # pairs (pattern of our name, official name), all applied in order
    (r"^patch_embedding\.patches\.", f"{_TRUNK}TorchLinear_0/Dense_0/"),
    (r"^to_context\.", f"{_TRUNK}TorchLinear_1/Dense_0/"),
    (r"^positions\.weight$", f"{_TRUNK}pos_embed"),
    (r"^context\.weight$", f"{_TRUNK}cls_embed"),
    (r"^conditions\.label\.table\.weight$", "Embed_0/embedding"),
    (r"^conditions\.alpha\.vector\.mlp_in\.", "TimestepEmbedder_0/TorchLinear_0/Dense_0/"),
    (r"^conditions\.alpha\.vector\.mlp_out\.", "TimestepEmbedder_0/TorchLinear_1/Dense_0/"),
    (r"^conditions\.alpha\.norm\.", "RMSNorm_0/"),
    (r"^trunk\.(\d+)\.", rf"{_TRUNK}blocks_\1/"),
    (r"/attention_norm\.", "/RMSNorm_0/"),
    (r"/mlp_norm\.", "/RMSNorm_1/"),
    (r"/attention\.qkv\.", "/Attention_0/TorchLinear_0/Dense_0/"),
    (r"/attention\.proj\.", "/Attention_0/TorchLinear_1/Dense_0/"),
    (r"/attention\.([qk]_norm)\.", r"/Attention_0/\1/"),
    (r"/mlp\.w1\.", "/SwiGLUFFN_0/TorchLinear_0/Dense_0/"),
    (r"/mlp\.w3\.", "/SwiGLUFFN_0/TorchLinear_1/Dense_0/"),
    (r"/mlp\.w2\.", "/SwiGLUFFN_0/TorchLinear_2/Dense_0/"),
    (r"/modulation\.", "/TorchLinear_0/Dense_0/"),
    (r"^heads\.u\.norm\.", f"{_TRUNK}FinalLayer_0/RMSNorm_0/"),
    (r"^heads\.u\.modulation\.", f"{_TRUNK}FinalLayer_0/TorchLinear_0/Dense_0/"),
    (r"^heads\.u\.out\.", f"{_TRUNK}FinalLayer_0/TorchLinear_1/Dense_0/"),
    (r"/Dense_0/weight$", "/Dense_0/kernel"),
)
# (width, blocks, numbers per patch) of the released models.
_PRESETS = {
    (768, 12, 768): "drifting_b16",
    (1024, 24, 768): "drifting_l16",
    (768, 12, 16): "drifting_b2",
    (1024, 24, 16): "drifting_l2",
}


def generator_arrays(network: DriftingViT) -> dict[str, Tensor]:
    """Return the weights under official names (parts joined with "/") in flax's layout; memory is shared."""
    found: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        found |= _to_flax(network, name, value)
    return found


def generator_tensors(
    official: Mapping[str, Tensor], network: DriftingViT, source: str = "official generator"
) -> dict[str, Tensor]:
    """Convert ``official`` arrays (names joined with "/", flax's layout) to a float32 state dict of ``network``.

    ``network`` may be on the meta device. A leading "params/" is dropped. Raises UserError, naming ``source``, for
    missing or unknown names and for arrays of another shape.
    """
    given, wanted = flax.without_root(official), generator_arrays(network)
    remedy = _remedy(given)
    flax.check_names(source, wanted.keys() - given.keys(), given.keys() - wanted.keys(), remedy)
    wrong = [name for name, value in wanted.items() if given[name].shape != value.shape]
    if wrong:
        listed = ", ".join(
            f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}" for name in wrong[:3]
        )
        raise UserError(f"{source}: {len(wrong)} of {len(wanted)} arrays have another size ({listed}); {remedy}")
    return {name: _from_flax(network, name, given) for name in network.state_dict()}


def load_official_generator(path: str | Path, network: DriftingViT) -> DriftingViT:
    """Load a released .msgpack, or its folder, into ``network`` in place and return ``network``.

    Raises UserError for a missing or damaged file, or one of another network.
    """
    path, _ = flax.find(path)
    ours = generator_tensors(read_msgpack(path), network, str(path))
    network.load_state_dict(ours, assign=network.positions.weight.is_meta)
    return network


def generator_preset(official: Mapping[str, Tensor], source: str) -> str:
    """Return the ``model=`` with the sizes of official arrays; UserError, naming ``source``, if there is none."""
    sizes = _sizes_in(flax.without_root(official))
    if sizes is None:
        raise UserError(
            f"{source}: holds no generator of drifting; an encoder is used by drift_features=mae_released "
            "drift_features.path=, and weights of pMF, iMF or JiT are .pt or .pth files"
        )
    if sizes not in _PRESETS:
        raise UserError(f"{source}: {_sizes_text(sizes)}, which no preset has; give model= and its sizes to convert")
    return _PRESETS[sizes]


def _official_name(name: str) -> str:
    for ours, theirs in _RULES:
        name = re.sub(ours, theirs, name)
    return name


def _style_names(network: DriftingViT) -> list[str]:
    return [f"noise_embeds_{i}/embedding" for i in range(network.conditions["style"].codes)]


def _to_flax(network: DriftingViT, name: str, value: Tensor) -> dict[str, Tensor]:
    if name == _STYLE:
        return dict(zip(_style_names(network), value.chunk(network.conditions["style"].codes), strict=True))
    theirs = _official_name(name)
    if name == _PATCHES:
        value = value.permute(2, 3, 1, 0).flatten(0, 2)
    elif theirs.endswith("/kernel"):
        value = value.T
    return {theirs: value}


def _from_flax(network: DriftingViT, name: str, given: Mapping[str, Tensor]) -> Tensor:
    if name == _STYLE:
        return torch.cat([given[table].float() for table in _style_names(network)])
    theirs = _official_name(name)
    value = given[theirs].float()
    if name == _PATCHES:
        value = value.unflatten(0, (network.patch, network.patch, network.channels)).permute(3, 2, 0, 1)
    elif theirs.endswith("/kernel"):
        value = value.T
    return value.contiguous()


def _remedy(given: Mapping[str, Tensor]) -> str:
    """Return an error hint: the sizes of the file and the preset with these sizes."""
    sizes = _sizes_in(given)
    if sizes is None:
        return "is it a generator of drifting?"
    found = _PRESETS.get(sizes)
    return f"{_sizes_text(sizes)}: " + (
        f"take model={found} with its data" if found else "set the backbone's sizes to those of the file"
    )


def _sizes_in(given: Mapping[str, Tensor]) -> tuple[int, int, int] | None:
    """Return (width, blocks, numbers per patch), None if the arrays are not those of a generator."""
    blocks = {match[1] for name in given if (match := re.match(rf"{_TRUNK}blocks_(\d+)/", name))}
    patches = given.get(f"{_TRUNK}TorchLinear_0/Dense_0/kernel")
    if not blocks or patches is None or patches.ndim != 2:
        return None
    return patches.shape[1], len(blocks), patches.shape[0]


def _sizes_text(sizes: tuple[int, int, int]) -> str:
    width, blocks, numbers = sizes
    return f"the file has {blocks} blocks of width {width} and patches of {numbers} numbers"
