"""Train, ablate and judge one-step, latent-free image generators: pixel MeanFlow and its kin, over one backbone."""

import sys
from importlib import import_module
from typing import Any

from pmf_lightning.terminal import be_brief

if sys.argv[:1] == ["-m"]:  # Python is about to run one of the commands, whose imports take seconds
    be_brief()

# Name -> module that holds it. Loaded at first use: the mathematics can be imported without Lightning or Hydra.
_HOMES = {
    "Batch": "objectives.contract",
    "Drifting": "objectives.drifting",
    "DriftingBatch": "objectives.drifting_draws",
    "DriftingDraws": "objectives.drifting_draws",
    "JiT": "objectives.jit",
    "JiTDraws": "objectives.jit_draws",
    "Losses": "objectives.contract",
    "MeanFlowDraws": "objectives.meanflow_draws",
    "MuonAdam": "optim.muon_adam",
    "PixelMeanFlow": "objectives.pixel_meanflow",
    "UserError": "errors",
    "build": "assemble",
    "compose": "config",
    "drift_loss": "objectives.drift_loss",
    "drifting_field": "objectives.drifting_field",
    "ema_beta": "optim.ema_beta",
    "generate": "sampling",
    "image_noise": "sampling",
    "load_checkpoint": "assemble",
    "load_official": "models.official",
    "official_weights": "models.official",
    "sample_images": "sampling",  # pmf_lightning.sample is the command
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
