"""Reconstructions of held-out images by an autoencoder, during and after training: image grids and metrics."""

from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.objectives.base import Batch
from pmf_lightning.training.callbacks.image_grids import ImageGrids

MOST_MEASURED, CHUNK = 1000, 50  # images evaluated at most, and per batch


class Reconstructions(ImageGrids):
    """Grids with rows of masked inputs, of inputs with inpainted masks, and of originals.

    Logs the ``held_out_metrics`` of the objective for the averaged weights. Masks and images are the same every time.
    The training that follows does not change. One more grid is drawn at the end.

    Args:
        held_out: the images; the first 1,000 of them are evaluated.
        others: see ``ImageGrids``; ``rows`` and ``columns`` count the images, each in its three versions. ``ema`` is
            also the average to evaluate.
    """

    wandb_folder = "reconstructions"

    def __init__(self, held_out: ImageDataset, **others: Any):
        super().__init__(**others)
        self.held_out, self.count = held_out, min(MOST_MEASURED, len(held_out))
        self.latest: dict[str, float] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Draw and evaluate if due."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == trainer.max_steps
        if self.new_step(trainer) and due and takes_part(trainer):
            with self.progress.paused():
                self.save_all(trainer, pl_module)
                self.latest = self.measure(pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step - 1)

    def images(self, module: LightningModule, **changes: Any) -> tuple[Float[Tensor, "n c h w"], int]:
        """Return masked inputs, inpainted inputs and originals, and the number of columns."""
        columns = min(self.columns, len(self.held_out))
        versions = []
        for row in range(min(self.rows, len(self.held_out) // columns)):
            batch = self._batch(module, row * columns, (row + 1) * columns)
            drawn = module.objective.draw(batch, module.seed, row)
            versions += module.objective.reconstructions(module.network, batch, drawn)
        return module.to_pixels(torch.cat(versions)), columns

    @torch.no_grad()
    def measure(self, module: LightningModule) -> dict[str, float]:
        """Return the means of the objective's ``held_out_metrics``, for the averaged weights."""
        sums: Counter[str] = Counter()
        with self.averages.swapped(module, self.ema):
            for start in range(0, self.count, CHUNK):
                batch = self._batch(module, start, min(start + CHUNK, self.count))
                drawn = module.objective.draw(batch, module.seed, start)
                for name, values in module.objective.held_out_metrics(module.network, batch, drawn).items():
                    sums[name] += values.sum().item()
        return {name: total / self.count for name, total in sums.items()}

    def _batch(self, module: LightningModule, start: int, end: int) -> Batch:
        images, labels = self.held_out.batch(range(start, end))
        rows = torch.arange(start, end)
        return Batch(module.inputs(images.to(module.device), rows, step=0), labels.to(module.device))
