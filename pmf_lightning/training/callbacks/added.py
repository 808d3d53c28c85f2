"""Build the callbacks of ``callbacks=``, which are added to those of every run, and refuse those that cannot act."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, ProgressBar
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.training.callbacks.early_stopping import EarlyStopping
from pmf_lightning.utils.errors import UserError

# Hooks that are never called: a run by steps has no validation, and nothing but training.
_PARTS = ("validation", "test", "predict")
_NEVER = {
    *("on_sanity_check_start", "on_sanity_check_end"),
    *(f"on_{part}_{when}" for part in _PARTS for when in ("start", "end", "epoch_start", "epoch_end")),
    *(f"on_{part}_batch_{when}" for part in _PARTS for when in ("start", "end")),
}


def make_added(sections: Mapping[str, Mapping[str, Any]], accelerator: str) -> list[Callback]:
    """Build a callback for each section of ``callbacks``; raises UserError for one that cannot act here."""
    callbacks = []
    for name, section in sections.items():
        callback = build_part(f"callbacks.{name}", section)
        if why := _refusal(callback, accelerator):
            raise UserError(f"callbacks.{name}: {section['_target_']} {why}")
        callbacks.append(callback)
    return callbacks


def _refusal(callback: Any, accelerator: str) -> str | None:
    """Return why a callback cannot act in a run, None if it can."""
    if not isinstance(callback, Callback):
        return "is not a callback of Lightning"
    if isinstance(callback, LightningEarlyStopping) and not isinstance(callback, EarlyStopping):
        ours = f"{EarlyStopping.__module__}.{EarlyStopping.__qualname__}"
        return (
            f"acts on validation, which a run by steps does not have; choose callbacks=early_stopping, or name {ours}"
        )
    if isinstance(callback, Checkpoint):
        return "writes checkpoints, which the run does itself; set checkpoint.every_images= and checkpoint.keep_last="
    if isinstance(callback, ProgressBar):
        return "is a progress bar, which the run has already; leave it out"
    if isinstance(callback, DeviceStatsMonitor):
        of_cpu = accelerator == "cpu" or callback._cpu_stats
        return "needs psutil here; pip install psutil" if of_cpu and find_spec("psutil") is None else None
    hooks = {name for name in dir(Callback) if name.startswith("on_")}
    own = {name for name in hooks if getattr(type(callback), name) is not getattr(Callback, name)}
    if own and own <= _NEVER:
        return f"acts only in {', '.join(sorted(own))}, which a run by steps never calls"
    return None
