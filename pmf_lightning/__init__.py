"""Train, ablate and evaluate one-step, latent-free image generators: pixel MeanFlow and related methods."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pmf_lightning.utils.terminal import be_brief

if sys.argv[:1] == ["-m"]:  # Python is about to run a command, and importing it takes seconds
    be_brief()

# Public name -> its module. Imported at first use, so the mathematics can be imported without Lightning or Hydra.
_HOMES = {
    "Batch": "objectives.base",
    "Drifting": "objectives.drifting",
    "DriftingDraws": "objectives.drifting",
    "FeatureEMA": "objectives.discrepancies.populations",
    "FeatureQueue": "objectives.discrepancies.populations",
    "FrechetReference": "objectives.discrepancies.frechet",
    "HubGenerator": "exporting.hub",
    "JiT": "objectives.jit",
    "JiTDraws": "objectives.jit",
    "Losses": "objectives.base",
    "MMDReference": "objectives.discrepancies.mmd",
    "MeanFlowDraws": "objectives.meanflow_draws",
    "MuonAdam": "optim.muon_adam",
    "PixelMeanFlow": "objectives.pixel_meanflow",
    "QueueBatch": "objectives.base",
    "UserError": "utils.errors",
    "build": "pipeline.build",
    "compose": "config.compose",
    "drift_loss": "objectives.drifting_loss",
    "drifting_field": "objectives.drifting_field",
    "ema_beta": "optim.schedules",
    "frechet_distance": "objectives.discrepancies.frechet",
    "frechet_loss": "objectives.discrepancies.frechet",
    "generate": "sampling.generate",
    "image_noise": "sampling.generate",
    "load": "pipeline.loading",
    "load_checkpoint": "pipeline.checkpoints",
    "load_official": "weights",
    "mmd_loss": "objectives.discrepancies.mmd",
    "official_weights": "weights",
    "sample_images": "sampling.generate",  # pmf_lightning.sample is the command
    "sliced_wasserstein": "objectives.discrepancies.sliced",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])


def _version() -> str:
    try:
        return version(__name__)
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "not installed"
