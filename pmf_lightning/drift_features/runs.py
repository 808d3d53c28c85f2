"""The encoder of a run of the train command (model=mae_r256 and the like), from its last checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from pmf_lightning.errors import UserError
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.network import MAE
from pmf_lightning.state_names import unwrapped
from pmf_lightning.tensor_files import at_most_weights, load_tensors

_SIZES = ("resolution", "channels", "patch", "base_channels", "blocks")
_TARGET = f"{MAE.__module__}.{MAE.__name__}"


def run_encoder(path: str | Path) -> MAEEncoder:
    """Return the encoder of a run directory or a checkpoint file, with the averaged weights it is judged by; frozen.

    Sizes, resolution and channels are those of the run. Nothing in the file is executed. Raises UserError for a missing
    or foreign file, or a checkpoint of something else than an MAE.
    """
    checkpoint = _read(Path(path).expanduser())
    try:
        backbone, ema = checkpoint["config"]["backbone"], checkpoint["config"]["sampling"]["ema"]
        target, averages = backbone["_target_"], checkpoint["ema"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint of pmf_lightning (it lacks {error})") from error
    if target != _TARGET:
        said = shorten(str(target), 120, placeholder=" ...")
        raise UserError(f"{path}: its network is {said}, no MAE; give a run of model=mae_r256 or the like")
    try:
        weights = _part(unwrapped(averages[ema], str(path)), "encoder.")
        with torch.device("meta"), at_most_weights(len(weights)):
            encoder = MAEEncoder(**{name: backbone[name] for name in _SIZES})
        if wrong := _differing(encoder.state_dict(), weights):
            raise ValueError(f"{wrong} is missing or of another size")
        encoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except UserError:
        raise
    except Exception as error:  # values of the wrong kind fail in many places
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: its weights and configuration make no encoder ({type(error).__name__}: {reason}); give a whole "
            "checkpoint of model=mae_r256 or the like"
        ) from error
    return encoder.requires_grad_(False).eval()


def _differing(wanted: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str:
    """Name a weight that is in one of them alone, or of another shape; empty where there is none."""
    names = sorted(wanted.keys() ^ there.keys()) or [name for name in wanted if wanted[name].shape != there[name].shape]
    return names[0] if names else ""


def _read(path: Path) -> Any:
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no checkpoint there; give a run directory of model=mae_r256 or the like, or a file")
    try:
        return load_tensors(file)
    except Exception as error:  # a foreign file makes torch raise nearly anything
        raise UserError(f"{file}: cannot be read as a checkpoint ({type(error).__name__})") from error


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
