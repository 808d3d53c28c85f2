"""Reconstructions of held-out images by an autoencoder, during and after training: image grids and metrics."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.objectives.base import Batch
from pmf_lightning.training.callbacks.disk_errors import tolerate_disk_errors
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.loggers.wandb import WandbLogger
from pmf_lightning.training.plots import save_grid

MOST_MEASURED, CHUNK = 1000, 50  # images evaluated at most, and per batch


class Reconstructions(Callback):
    """Writes ``grids/<images seen>-<weights>.png``: rows of masked inputs, inputs with inpainted masks, and originals.

    Logs two metrics of the averaged weights: "held_out_error", the mean squared error of masked pixels of held-out
    images, and "held_out_accuracy", the class accuracy on unmasked ones. Masks and images are the same every time. The
    training that follows does not change.

    Args:
        folder: the folder of the grids.
        every_steps: optimiser steps between grids; one more at the end.
        rows, columns: maximum numbers of images on a grid (each in its three versions).
        held_out: the images; the first 1,000 of them are evaluated.
        ema: the average to evaluate and to show next to the raw weights.
        averages, progress: the callbacks of the averages and of the throughput.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        rows: int,
        columns: int,
        held_out: ImageDataset,
        ema: str,
        averages: EMA,
        progress: ThroughputBar,
    ):
        self.folder, self.every_steps, self.rows, self.columns = folder, every_steps, rows, columns
        self.held_out, self.count, self.ema = held_out, min(MOST_MEASURED, len(held_out)), ema
        self.averages, self.progress = averages, progress
        self.latest: dict[str, float] | None = None
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the checkpoint's step: the first micro-batch does not complete a new one."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Draw and evaluate if due."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == trainer.max_steps
        if step != self._step and due and takes_part(trainer):
            with self.progress.paused():
                images = step * self.progress.batch
                with tolerate_disk_errors(f"the picture of step {step}", "the next one is tried as ever"):
                    self._draw_all(trainer, pl_module, images)
                self.latest = self.measure(pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step - 1)
        self._step = step

    def _draw_all(self, trainer: Trainer, module: LightningModule, images: int) -> None:
        for weights in dict.fromkeys(("raw", self.ema)):
            path = self.draw(module, weights, f"{images:010d}-{weights}.png")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_picture(f"reconstructions/{weights}", path, images)

    def draw(self, module: LightningModule, weights: str, name: str) -> Path:
        """Write one grid and return its path."""
        columns = min(self.columns, len(self.held_out))
        versions = []
        with self.averages.swapped(module, weights):
            for row in range(min(self.rows, len(self.held_out) // columns)):
                batch = self._batch(module, row * columns, (row + 1) * columns)
                drawn = module.objective.draw(batch, module.seed, row)
                versions += module.objective.reconstructions(module.network, batch, drawn)
        images, path = module.to_pixels(torch.cat(versions)), self.folder / name
        return save_grid(images, columns, path) if rank_zero_only.rank == 0 else path

    @torch.no_grad()
    def measure(self, module: LightningModule) -> dict[str, float]:
        """Return the error of masked pixels and the accuracy on unmasked images, for the averaged weights."""
        error, right = 0.0, 0
        with self.averages.swapped(module, self.ema):
            for start in range(0, self.count, CHUNK):
                batch = self._batch(module, start, min(start + CHUNK, self.count))
                drawn = module.objective.draw(batch, module.seed, start)
                sums = module.objective(module.network, batch, drawn).per_sample["loss_reconstruction"]
                error += sums.sum().item() / batch.x[0].numel()
                logits = module.network(batch.x, heads=("logits",))["logits"]
                right += (logits.argmax(1) == batch.y).sum().item()
        return {"held_out_error": error / self.count, "held_out_accuracy": right / self.count}

    def _batch(self, module: LightningModule, start: int, end: int) -> Batch:
        images, labels = self.held_out.batch(range(start, end))
        rows = torch.arange(start, end)
        return Batch(module.inputs(images.to(module.device), rows, step=0), labels.to(module.device))
