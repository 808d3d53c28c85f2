"""Base class of callbacks that act once per optimiser step, not once per micro-batch."""

from lightning import Callback, LightningModule, Trainer


class OncePerStep(Callback):
    """Callback that detects completed optimiser steps.

    Lightning calls ``on_train_batch_start`` and ``on_train_batch_end`` for every micro-batch. A subclass overrides one
    of them and acts where ``new_step`` returns True.

    Attributes:
        step: the number of optimiser steps at the last call of ``new_step``; -1 before training.
    """

    step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the checkpoint's step: the first micro-batch does not complete a new one."""
        self.step = trainer.global_step

    def new_step(self, trainer: Trainer) -> bool:
        """Return whether an optimiser step was completed since the last call."""
        before, self.step = self.step, trainer.global_step
        return self.step != before
