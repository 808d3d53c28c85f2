"""Settings of a training run by the part that reads them; training/prepare.py makes them from the configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class RunRequest:
    """The run that a command requests: its directory, what it resumes, and its configuration.

    Args:
        run_dir: the run directory; None for a new one in ``parent``.
        ckpt: what to resume (see conf/run.yaml); None starts from step 0.
        parent: the folder of new runs of this model and data.
        steps: optimiser steps of the complete run.
        config: the resolved configuration as plain data, which is compared with that of the resumed run.
    """

    run_dir: Path | None
    ckpt: str | None
    parent: Path
    steps: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger describes.

    Args:
        folder: the run directory.
        batch: images per optimiser step, over all devices.
        config: the resolved configuration as plain data.
        first_step: the step of the checkpoint that the run resumes, else 0.
        wandb_run: the id of the W&B run in that checkpoint, if any.
    """

    folder: Path
    batch: int
    config: Mapping[str, Any]
    first_step: int = 0
    wandb_run: str | None = None


@dataclass(frozen=True)
class EMASettings:
    """Half-lives of the averages in thousands of images, their bound ``rampup_ratio`` and device (callbacks/ema.py)."""

    halflife_kimg: Sequence[Number]
    rampup_ratio: Number | None
    device: str | None


@dataclass(frozen=True)
class GridSettings:
    """Image grids: ``rows`` x ``columns`` images, every ``every_images`` training images."""

    enabled: bool
    every_images: int
    rows: int
    columns: int


@dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints: one every ``every_images`` training images; above 1, the newest ``keep_last`` also get a number."""

    every_images: int
    keep_last: int


@dataclass(frozen=True)
class TrainingSettings:
    """The numbers of a run that callbacks, loggers and the trainer read; their meaning is in conf/run.yaml.

    ``batch`` is the number of images per optimiser step over all devices. ``sampling`` holds the sampling options of
    evaluation, ``trainer`` the options of Lightning's Trainer.
    """

    name: str
    steps: int
    batch: int
    log_every_steps: int
    t_bins: int
    most_skipped: int
    sync_tolerance: Number | None
    matmul_precision: str
    threads: int | str | None
    sampling: Mapping[str, Any]
    trainer: Mapping[str, Any]
    ema: EMASettings
    sample_grid: GridSettings
    checkpoint: CheckpointSettings

    def every(self, images: int) -> int:
        """Return the number of optimiser steps that see ``images`` images, at least 1."""
        return max(1, images // self.batch)
