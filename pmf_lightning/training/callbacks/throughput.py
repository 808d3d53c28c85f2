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
    """Progress bar over optimiser steps, training speed, and the duration of the run.

    The clock of the speed starts after the first step (warm-up). Callbacks that draw or evaluate pause it with
    ``with progress.paused()``. Checkpoints store the times, and a resumed run adds to them.

    Args:
        batch: images per optimiser step, over all devices.
        every_steps: optimiser steps between updates of the bar's numbers and logs of the speed.
        started: time.perf_counter() at the start of this session; None: now.

    Attributes:
        idle: seconds of all pauses so far.
    """

    def __init__(self, batch: int, every_steps: int, started: float | None = None):
        self.batch, self.every_steps = batch, every_steps
        self.started = time.perf_counter() if started is None else started
        self._bar: tqdm | None = None
        self._first, self._begun, self._now, self._idle = 0, 0.0, 0.0, 0.0
        self.idle = 0.0
        self._earlier = {"wall_seconds": 0.0, "timed_steps": 0, "timed_seconds": 0.0}  # of the sessions before

    @property
    def images_per_second(self) -> float:
        """Training speed of this session; 0 before the second step."""
        return self._speed(*self._timed())

    @property
    def overall_images_per_second(self) -> float:
        """Training speed of the complete run, all sessions up to its checkpoints; 0 if no step was timed."""
        steps, seconds = self._timed()
        return self._speed(self._earlier["timed_steps"] + steps, self._earlier["timed_seconds"] + seconds)

    @property
    def wall_seconds(self) -> float:
        """Duration of the complete run so far; of a session that was killed, up to its last checkpoint."""
        return self._earlier["wall_seconds"] + time.perf_counter() - self.started

    def _timed(self) -> tuple[int, float]:
        """Return the number of steps of this session after the first, and their seconds without pauses."""
        if not self._begun:
            return 0, 0.0
        return self.step - self._first, self._now - self._begun - (self.idle - self._idle)

    def _speed(self, steps: int, seconds: float) -> float:
        return steps * self.batch / seconds if steps > 0 else 0.0

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

    def state_dict(self) -> dict[str, float]:
        """Return the times of the run so far, for the checkpoint."""
        steps, seconds = self._timed()
        return {
            "wall_seconds": self.wall_seconds,
            "timed_steps": self._earlier["timed_steps"] + steps,
            "timed_seconds": self._earlier["timed_seconds"] + seconds,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the times of the sessions before."""
        self._earlier = state
