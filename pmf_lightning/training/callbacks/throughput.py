"""Progress bar of training with the squared errors and the images per second."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import LightningModule, Trainer
from tqdm.auto import tqdm

from pmf_lightning.training.callbacks.once_per_step import OncePerStep

_REFRESH = {True: 0.1, False: 10.0}  # seconds on a terminal, and in a log file, which gets fewer lines


class ThroughputBar(OncePerStep):
    """Progress bar over optimiser steps, and training speed.

    The clock starts after the first step (warm-up). Callbacks that draw or evaluate pause it with
    ``with progress.paused()``.

    Args:
        batch: images per optimiser step, over all devices.
        every_steps: optimiser steps between updates of the bar's numbers and logs of the speed.

    Attributes:
        idle: seconds of all pauses so far.
    """

    def __init__(self, batch: int, every_steps: int):
        self.batch, self.every_steps = batch, every_steps
        self._bar: tqdm | None = None
        self._first, self._begun, self._idle = 0, 0.0, 0.0
        self.idle = 0.0

    @property
    def images_per_second(self) -> float:
        """Training speed of this session; 0 before the second step."""
        steps = self.step - self._first
        if steps <= 0 or not self._begun:
            return 0.0
        return steps * self.batch / (self._now - self._begun - (self.idle - self._idle))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the speed."""
        begun = time.perf_counter()
        yield
        self.idle += time.perf_counter() - begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=self.step,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                mininterval=_REFRESH[sys.stderr.isatty()],
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Count a completed step."""
        if not self.new_step(trainer):
            return
        self._now = time.perf_counter()
        if not self._begun:
            self._first, self._begun, self._idle = self.step, self._now, self.idle
        if self.step % self.every_steps == 0 and self.images_per_second:
            pl_module.log("images_per_second", self.images_per_second, rank_zero_only=True)
        if self._bar is not None:
            self._bar.update()
            if self.step % self.every_steps == 0:
                losses = {name: f"{float(value):.4f}" for name, value in trainer.progress_bar_metrics.items()}
                self._bar.set_postfix({**losses, "images/s": f"{self.images_per_second:.0f}"})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self.on_train_end(trainer, pl_module)
