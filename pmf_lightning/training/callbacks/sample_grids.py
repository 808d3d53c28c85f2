"""Grids of samples from the same noise during training, with raw and with averaged weights."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.sampling.generate import OPTIONS, numbered_images
from pmf_lightning.training.callbacks.disk_errors import tolerate_disk_errors
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.loggers.wandb import WandbLogger
from pmf_lightning.training.plots import save_grid


class SampleGrids(Callback):
    """Writes ``grids/<images seen>-<weights>.png``: a column per class, each image in ``sampling.steps`` steps.

    Args:
        folder: the folder of the grids.
        every_steps: optimiser steps between grids.
        rows, columns: images per class, and maximum number of classes.
        sampling: the sampling options and the name of the average to show next to the raw weights.
        averages, progress: the callbacks of the averages and of the throughput.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        rows: int,
        columns: int,
        sampling: dict,
        averages: EMA,
        progress: ThroughputBar,
    ):
        self.folder, self.every_steps, self.rows, self.columns = folder, every_steps, rows, columns
        self.sampling, self.averages, self.progress = sampling, averages, progress
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the checkpoint's step: the first micro-batch does not complete a new one."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Draw if due."""
        step = trainer.global_step
        if step != self._step and step % self.every_steps == 0 and takes_part(trainer):
            with (
                self.progress.paused(),
                tolerate_disk_errors(f"the grid of step {step}", "the next grid is tried as ever"),
            ):
                images = step * self.progress.batch
                for weights in dict.fromkeys(("raw", self.sampling["ema"])):
                    path = self.draw(pl_module, weights, f"{images:010d}-{weights}.png")
                    for logger in trainer.loggers:
                        if isinstance(logger, WandbLogger):
                            logger.log_picture(f"samples/{weights}", path, images)
        self._step = step

    def draw(self, module: LightningModule, weights: str, name: str, **changes: Any) -> Path:
        """Write one grid and return its path; ``changes`` overrides sampling options, such as steps."""
        network, options = module.network, {key: self.sampling[key] for key in OPTIONS} | changes
        columns = min(self.columns, network.classes)
        labels = torch.arange(columns).repeat(self.rows)
        with self.averages.swapped(module, weights):
            images = numbered_images(module, labels, module.seed, 0, **options)
        return save_grid(images, columns, self.folder / name) if rank_zero_only.rank == 0 else self.folder / name
