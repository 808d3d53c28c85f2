"""Convert the released weights of Drifting's masked autoencoder (arXiv 2602.04770, flax) to our MAE.

Names are mapped. Kernels are transposed from flax's layout to torch's (convolutions [h, w, in, out] to
[out, in, h, w], matrices [in, out] to [out, in]). No weight is skipped silently.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.network import MAE
from pmf_lightning.utils.errors import UserError
from pmf_lightning.weights import flax
from pmf_lightning.weights.flax import read_msgpack

_UPS = ("up43", "up32", "up21", "up10")
_RULES = (  # pairs (pattern of our name, official name without its last part)
    (r"encoder\.stem\.0", "encoder/conv1"),
    (r"encoder\.stem\.1", "encoder/gn1"),
    (r"encoder\.stages\.(\d)\.norm", lambda m: f"encoder/layer{int(m[1]) + 1}_norm"),
    (r"encoder\.stages\.(\d)\.blocks\.(\d+)\.conv(\d)", r"encoder/stages_\1/layers_\2/conv\3"),
    (r"encoder\.stages\.(\d)\.blocks\.(\d+)\.norm(\d)", r"encoder/stages_\1/layers_\2/gn\3"),
    (r"encoder\.stages\.(\d)\.blocks\.(\d+)\.shortcut\.0", r"encoder/stages_\1/layers_\2/proj_conv"),
    (r"encoder\.stages\.(\d)\.blocks\.(\d+)\.shortcut\.1", r"encoder/stages_\1/layers_\2/proj_gn"),
    (r"decoder\.bridge\.0", "decoder/bridge/conv"),
    (r"decoder\.bridge\.1", "decoder/bridge/gn"),
    (r"decoder\.ups\.(\d)\.norm", lambda m: f"decoder/{_UPS[int(m[1])]}/concat_norm_fn"),
    (r"decoder\.ups\.(\d)\.project\.0", lambda m: f"decoder/{_UPS[int(m[1])]}/proj/conv"),
    (r"decoder\.ups\.(\d)\.project\.1", lambda m: f"decoder/{_UPS[int(m[1])]}/proj/gn"),
    (r"decoder\.ups\.(\d)\.refine\.0", lambda m: f"decoder/{_UPS[int(m[1])]}/refine/conv"),
    (r"decoder\.ups\.(\d)\.refine\.1", lambda m: f"decoder/{_UPS[int(m[1])]}/refine/gn"),
    (r"decoder\.head", "decoder/head"),
    (r"head", "fc"),
)


def official_mae_name(name: str, dimensions: int) -> str:
    """Return the official name, parts joined with "/", of our MAE weight ``name`` of ``dimensions`` dimensions."""
    owner, _, kind = name.rpartition(".")
    last = "bias" if kind == "bias" else "scale" if dimensions == 1 else "kernel"
    for pattern, theirs in _RULES:
        if match := re.fullmatch(pattern, owner):
            return f"{match.expand(theirs) if isinstance(theirs, str) else theirs(match)}/{last}"
    raise ValueError(f"{name} is not a weight of an MAE")


def mae_tensors(official: Mapping[str, Tensor], network: MAE | MAEEncoder, source: str = "official MAE") -> dict:
    """Convert ``official`` arrays (names joined with "/", flax's layout) to a float32 state dict of ``network``.

    ``network`` may be only the encoder, which ignores the rest of the file. It may be on the meta device. A leading
    "params/" is dropped. Raises UserError, naming ``source``, for missing or unknown names and for arrays of another
    shape.
    """
    given = flax.without_root(official)
    prefix = "encoder." if isinstance(network, MAEEncoder) else ""
    pairs = {(n, official_mae_name(prefix + n, value.ndim)): value for n, value in network.state_dict().items()}
    known = {theirs for _, theirs in pairs}
    unknown = given.keys() - known
    if prefix:
        unknown = {name for name in unknown if name.startswith("encoder/")}
    question = "is it an MAE of drifting, with as many blocks in each stage?"
    flax.check_names(source, known - given.keys(), unknown, question)
    ours = {n: _in_torchs_layout(given[theirs]) for n, theirs in pairs}
    wrong = [(n, theirs) for (n, theirs), value in pairs.items() if ours[n].shape != value.shape]
    if wrong:
        listed = ", ".join(f"{theirs} is {tuple(ours[n].shape)}, not {_shape(pairs, n)}" for n, theirs in wrong[:3])
        raise UserError(
            f"{source}: {len(wrong)} of {len(pairs)} arrays have another size ({listed}, in torch's layout); "
            "set base_channels, patch, channels, blocks and classes to those of the file"
        )
    return ours


def load_official_mae(path: str | Path, network: MAE | MAEEncoder) -> nn.Module:
    """Load a released .msgpack, or its folder, into ``network`` in place and return ``network``.

    Raises UserError for a missing or damaged file, or one of another network.
    """
    path, _ = flax.find(path)
    network.load_state_dict(mae_tensors(read_msgpack(path), network, str(path)), assign=True)
    return network


def official_mae_sizes(path: str | Path) -> dict[str, Any]:
    """Return channels, patch, base_channels, blocks and classes of a released folder, as arguments of MAE.

    They come from its metadata, as does "cell", the side of a masked cell in patches. The resolution is not stored
    (the official grid has 32 x 32 patches). The default of classes is 1000. Raises UserError for missing or foreign
    metadata.
    """
    return flax.sizes(
        path,
        "an MAE",
        lambda about: {
            "channels": int(about.get("in_channels", 3)),
            "patch": int(about.get("input_patch_size", 1)),
            "base_channels": int(about.get("base_channels", 64)),
            "blocks": [int(n) for n in about.get("layers", (2, 2, 2, 2))],
            "classes": int(about.get("num_classes", 1000)),
            "cell": int(about.get("patch_size", 4)),
        },
    )


def _in_torchs_layout(value: Tensor) -> Tensor:
    if value.ndim == 4:
        value = value.permute(3, 2, 0, 1)
    elif value.ndim == 2:
        value = value.T
    return value.float().contiguous()


def _shape(pairs: Mapping[tuple[str, str], Tensor], name: str) -> tuple[int, ...]:
    return next(tuple(value.shape) for (ours, _), value in pairs.items() if ours == name)
