"""Base class of callbacks that write image grids during training, with raw and with averaged weights."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from pmf_lightning.training.callbacks.disk_errors import tolerate_disk_errors
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.loggers.wandb import WandbLogger
from pmf_lightning.training.plots import save_grid


class ImageGrids(OncePerStep):
    """Writes ``grids/<images seen>-<weights>.png``, and sends the grids to Weights & Biases if it is used.

    Args:
        folder: the folder of the grids.
        every_steps: optimiser steps between grids.
        rows, columns: maximum numbers of rows and columns; a subclass states what they show.
        ema: the average to show next to the raw weights.
        averages, progress: the callbacks of the averages and of the throughput.
    """

    wandb_folder: ClassVar[str]

    def __init__(
        self, folder: Path, every_steps: int, rows: int, columns: int, ema: str, averages: EMA, progress: ThroughputBar
    ):
        self.folder, self.every_steps, self.rows, self.columns = folder, every_steps, rows, columns
        self.ema, self.averages, self.progress = ema, averages, progress

    @abstractmethod
    def images(self, module: LightningModule, **changes: Any) -> tuple[Float[Tensor, "n c h w"], int]:
        """Return the images of a grid, row by row, and its number of columns."""

    def titles(self, module: LightningModule) -> list[str] | None:
        """Return the title of each column; None without."""
        return None

    def save_all(self, trainer: Trainer, module: LightningModule) -> None:
        """Write and log a grid per set of weights; an OSError is only reported."""
        step = trainer.global_step
        seen = step * self.progress.batch
        with tolerate_disk_errors(f"the grid of step {step}", "the next grid will be tried"):
            for weights in dict.fromkeys(("raw", self.ema)):
                path = self.draw(module, weights, f"{seen:010d}-{weights}.png")
                for logger in trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.log_picture(f"{self.wandb_folder}/{weights}", path, seen, self.titles(module))

    def draw(self, module: LightningModule, weights: str, name: str, **changes: Any) -> Path:
        """Write one grid and return its path; a subclass defines ``changes``."""
        path = self.folder / name
        with self.averages.swapped(module, weights):
            images, columns = self.images(module, **changes)
        return save_grid(images, columns, path, self.titles(module)) if rank_zero_only.rank == 0 else path
