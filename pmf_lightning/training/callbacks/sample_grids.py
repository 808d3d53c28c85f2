"""Grids of samples from the same noise during training, with raw and with averaged weights."""

from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from pmf_lightning.distributed.strategies import takes_part
from pmf_lightning.sampling.generate import OPTIONS, numbered_images
from pmf_lightning.training.callbacks.disk_errors import tolerate_disk_errors
from pmf_lightning.training.callbacks.image_grids import ImageGrids


class SampleGrids(ImageGrids):
    """Grids of samples: a column per class, ``rows`` images per class, each in ``sampling.steps`` steps.

    A model without classes (one) fills all columns. The titles are the class names.

    Args:
        sampling: the sampling options and the name of the average to show next to the raw weights.
        others: see ``ImageGrids``; ``columns`` is the maximum number of classes.
    """

    wandb_folder = "samples"

    def __init__(self, sampling: dict, **others: Any):
        super().__init__(ema=sampling["ema"], **others)
        self.sampling = sampling

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw ``before.png`` with the weights of ``init_from=``, from the noise of all other grids."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and pl_module.init_from is not None and takes_part(trainer):
            with tolerate_disk_errors("the grid before the first step", "the next grid will be tried"):
                self.draw(pl_module, "raw", "before.png")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Draw if due."""
        if self.new_step(trainer) and self.step % self.every_steps == 0 and takes_part(trainer):
            with self.progress.paused():
                self.save_all(trainer, pl_module)

    def images(self, module: LightningModule, **changes: Any) -> tuple[Float[Tensor, "n c h w"], int]:
        """Return samples and the number of columns; ``changes`` overrides sampling options, such as steps."""
        options = {key: self.sampling[key] for key in OPTIONS} | changes
        columns = self._columns(module)
        labels = (torch.arange(columns) % module.network.classes).repeat(self.rows)
        return numbered_images(module, labels, module.seed, 0, **options), columns

    def titles(self, module: LightningModule) -> list[str] | None:
        """Return the class name of each column; None without names, or with one class."""
        names = module.class_names
        return None if names is None or len(names) < 2 else list(names[: self._columns(module)])

    def _columns(self, module: LightningModule) -> int:
        return self.columns if module.network.classes == 1 else min(self.columns, module.network.classes)
