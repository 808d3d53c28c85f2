"""Build Lightning's Trainer of a run, and show what its profiler measured."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pmf_lightning.config.compose import one_line
from pmf_lightning.distributed import slurm
from pmf_lightning.distributed.strategies import trainer_options
from pmf_lightning.training.prepare import Parts
from pmf_lightning.utils.errors import UserError

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
_PROFILE = "profile"  # in the names of a profiler's files
_MOST_SHOWN = 30  # lines of a profile that are printed


def make_trainer(parts: Parts, folder: Path, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Build the Trainer; the number of micro-batches follows from batch and devices.

    Options of ``trainer=`` that are None are Lightning's defaults. Raises UserError for options that Lightning refuses.
    """
    settings = parts.settings
    torch.set_float32_matmul_precision(settings.matmul_precision)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hides its hints and hardware lists
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # Lightning 2.6 with new torch
    options = trainer_options(settings.trainer)
    options = {name: value for name, value in options.items() if value is not None}
    try:
        timers = [SessionTimer(options.pop("max_time"))] if "max_time" in options else []
        trainer = Trainer(
            **options | {"profiler": _profiler(options.get("profiler"), folder)},
            max_steps=settings.steps,
            max_epochs=-1,
            callbacks=[*callbacks, *timers],
            logger=loggers,
            plugins=slurm.plugins(),
            log_every_n_steps=settings.log_every_steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            default_root_dir=folder,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    trainer.accumulate_grad_batches = parts.data.accumulation(trainer.world_size)
    return trainer


class SessionTimer(Timer):
    """Ends a run after ``max_time``. A resumed run has all of it again, so that batch jobs of one limit go on."""

    @property
    def state_key(self) -> str:
        """The key in checkpoints of Lightning's own timer."""
        return Timer.__name__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the time of earlier sessions is not counted."""


def _profiler(name: str | None, folder: Path) -> Profiler | None:
    return None if name is None else _PROFILERS[name](dirpath=folder, filename=_PROFILE)


@rank_zero_only
def show_profile(folder: Path) -> None:
    """Print the beginning of the profile in ``folder``, if there is one, and the paths of its files."""
    files = sorted(folder.glob(f"fit-{_PROFILE}*"))
    for path in (path for path in files if path.suffix == ".txt"):
        lines = path.read_text(errors="replace").splitlines()
        print("\n".join(line[:200] for line in lines[:_MOST_SHOWN]))
        print(f"... {len(lines) - _MOST_SHOWN:,} more lines" if len(lines) > _MOST_SHOWN else "", flush=True)
    if files:
        print(f"profile: {', '.join(map(str, files))}", flush=True)
