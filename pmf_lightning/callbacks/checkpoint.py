"""Checkpoints that a kill at any moment cannot spoil, and a stop that loses nothing."""

import os
import signal
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from pmf_lightning.callbacks.finite import SkipNonFinite


class LastCheckpoint(Callback):
    """Keeps ``last.ckpt`` in a folder up to date: every so many steps, and when training ends or is stopped.

    The file is written beside itself and renamed, so that the previous one stays whole until the new one is. SIGINT
    (Ctrl-C) and SIGTERM end training after the running step; a second SIGINT ends it at once. While steps are skipped
    the weights may be past help, so that a save which falls due then waits for the next good step.
    """

    def __init__(self, folder: Path, every_steps: int, finite: SkipNonFinite):
        self.path = Path(folder) / "last.ckpt"
        self.every_steps, self.finite = every_steps, finite
        self.stopped = self._due = False
        self._saved = -1
        self._handlers: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals."""
        self._saved = trainer.global_step

        def stop(number, frame):
            self.stopped = trainer.should_stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if trainer.is_global_zero:
                print("\nstopping after this step; press Ctrl-C again to stop at once", flush=True)

        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, stop)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Save when it is time."""
        step = trainer.global_step
        if step == self._saved:
            return
        self._due |= step % self.every_steps == 0
        if trainer.should_stop or (self._due and not self.finite.in_a_row):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is not saved yet, and listen no more."""
        if trainer.global_step != self._saved:
            self.save(trainer)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of this moment, a moment between two steps."""
        self._saved, self._due = trainer.global_step, False
        draft = self.path.with_suffix(".draft")
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            os.replace(draft, self.path)
        trainer.strategy.barrier()

    def _release(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
