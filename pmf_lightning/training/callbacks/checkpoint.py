"""Write checkpoints atomically, so that neither a kill nor a full disk damages them, and save when a run stops."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tqdm.auto import tqdm

from pmf_lightning.pipeline import checkpoint_io
from pmf_lightning.pipeline.migrate import migrate_callbacks
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.utils.errors import NotSaved
from pmf_lightning.utils.pasted import path_argument


class CheckpointWriter(OncePerStep):
    """Saves ``last.ckpt`` every ``every_steps`` steps, and when training ends or is stopped.

    The file is written to a draft, synced to disk and renamed, so that the previous one stays intact until the new one
    is complete. While steps are skipped the weights may be unusable, so a save that is due waits for the next good
    step. A save that fails with OSError is reported, counted in ``failed``, and retried after a tenth of the interval.
    At the end of training such a failure raises NotSaved.

    Args:
        folder: the folder of the files.
        every_steps: optimiser steps between saves.
        keep_last: above 1, this many of the newest checkpoints also get names with their steps, as links to the file.
        finite, signals: the callback that skips steps, and the requests to stop.
        evaluation: each time that its distance is the lowest so far, the checkpoint is saved and also named
            ``best.ckpt``; it stores metric, value and step under "best".
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        keep_last: int,
        finite: SkipNonFinite,
        signals: StopSignals,
        evaluation: SampleEvaluation | None,
    ):
        self.path = Path(folder) / checkpoint_io.LAST
        self.every_steps, self.keep_last = every_steps, keep_last
        self.finite, self.signals, self.evaluation = finite, signals, evaluation
        self.best: dict[str, Any] | None = None
        self._new_best: dict[str, Any] | None = None
        self.failed = self._failed_in_a_row = 0
        self._saved = self._retry_at = -1  # steps
        self._due = False
        self._disk = AtomicCheckpointIO(keep_last)

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped before its last step."""
        return self.signals.stopped

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the atomic checkpoint IO."""
        trainer.strategy.checkpoint_io = self._disk

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove old drafts and install the signal handlers."""
        super().on_train_start(trainer, pl_module)
        self._saved = self.step
        if trainer.is_global_zero:
            checkpoint_io.clear_drafts(self.path.parent)
        self.signals.listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Save if due. This runs before the next step because only then the log has the row of the last one."""
        if not self.new_step(trainer):
            return
        self._due |= self.step % self.every_steps == 0 or self.step == self._retry_at
        self._new_best = None if self.finite.in_a_row else self._improved(trainer)
        if (self._due or self._new_best) and not self.finite.in_a_row:
            self.save(trainer)

    def _improved(self, trainer: Trainer) -> dict[str, Any] | None:
        """Return metric, value and step if the quality measured after this step is the best so far, else None."""
        step, evaluation = trainer.global_step, self.evaluation
        if evaluation is None or (step % evaluation.every_steps and step != trainer.max_steps):
            return None
        found = None
        if evaluation.measured_at == step:  # may hold on some ranks only
            value = evaluation.metrics(evaluation.latest)[evaluation.name]
            if value < (self.best["value"] if self.best else math.inf):
                found = {"metric": evaluation.name, "value": float(value), "step": step}
        return trainer.strategy.broadcast(found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the last step is not saved yet, and restore the signal handlers; raises NotSaved if saving fails."""
        if trainer.global_step != self._saved:
            self._new_best = self._improved(trainer)
            self.save(trainer)
        self.signals.release()
        if self._failed_in_a_row:
            raise NotSaved(
                f"step {trainer.global_step}: {self.path} could not be written ({self._disk.reason}); "
                f"{self._previous()}. Free some space there, and {self._again()}"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self.signals.release()

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint; call it between two steps."""
        step, before = trainer.global_step, self.best
        self.best = self._new_best or before
        others = [checkpoint_io.BEST] if self._new_best else []
        others += [checkpoint_io.numbered(step)] if self.keep_last > 1 else []
        self._disk.names = self.path, [self.path.with_name(name) for name in others]
        with _no_batch_begun(trainer):
            trainer.save_checkpoint(self.path.with_suffix(".draft"))
        self._disk.reason = trainer.strategy.broadcast(self._disk.reason)  # only rank 0 writes
        self._due = False
        if self._disk.reason is None:
            self._saved = step
            self._succeeded(trainer)
        else:
            self.best = before
            self._put_off(trainer)

    def _succeeded(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self._failed_in_a_row:
            tqdm.write(f"step {trainer.global_step}: {self.path} is saved again")
        self._failed_in_a_row = 0

    def _put_off(self, trainer: Trainer) -> None:
        """Count a failed save, report the first in a row, and schedule a retry."""
        self.failed, self._failed_in_a_row = self.failed + 1, self._failed_in_a_row + 1
        self._retry_at = trainer.global_step + max(1, self.every_steps // 10)
        if self._failed_in_a_row == 1 and trainer.is_global_zero:
            tqdm.write(
                f"step {trainer.global_step}: {self.path} is NOT saved ({self._disk.reason}); {self._previous()}; "
                f"training continues and tries again at step {self._retry_at}"
            )

    def _previous(self) -> str:
        return "the previous one remains" if self.path.is_file() else "there is no checkpoint yet"

    def _again(self) -> str:
        where = path_argument("run_dir", self.path.parent.parent)
        return f"resume with {where} ckpt=last" if self.path.is_file() else f"start again with {where}"

    def state_dict(self) -> dict[str, int]:
        """Return the number of failed saves, for the checkpoint."""
        return {"failed": self.failed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the number of failed saves."""
        self.failed = state["failed"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Save the best value so far."""
        if self.best:
            checkpoint["best"] = self.best

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Restore the best value so far, if it is of the same metric and best.ckpt is in this folder."""
        best = checkpoint.get("best")
        if (
            best
            and self.evaluation
            and best["metric"] == self.evaluation.name
            and self.path.with_name(checkpoint_io.BEST).is_file()
        ):
            self.best = best


@contextmanager
def _no_batch_begun(trainer: Trainer) -> Iterator[None]:
    """Undo Lightning's count of the batch that has begun; saved, it would shift the logged step of the resumed run."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    begun = progress.current.ready - progress.current.completed
    for counted in (progress.current, progress.total):
        counted.ready -= begun
    try:
        yield
    finally:
        for counted in (progress.current, progress.total):
            counted.ready += begun


class AtomicCheckpointIO(TorchCheckpointIO):
    """CheckpointIO that writes a draft and renames it to its ``names``; after an OSError, ``reason`` is the message.

    It does not raise, since the other ranks wait at a barrier.
    """

    def __init__(self, keep_last: int):
        self.keep_last = keep_last
        self.names: tuple[Path, list[Path]]
        self.reason: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        """Write, sync, rename."""
        self.reason = None
        try:
            checkpoint_io.write(checkpoint, Path(path))
            checkpoint_io.name(Path(path), *self.names)
            if self.keep_last > 1:
                checkpoint_io.remove_oldest(Path(path).parent, self.keep_last)
        except OSError as error:
            with suppress(OSError):
                checkpoint_io.clear_drafts(Path(path).parent)
            self.reason = f"{error.strerror or error}; {checkpoint_io.room(checkpoint, Path(path).parent)}"

    def load_checkpoint(self, path: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint to resume, also one of an earlier version."""
        return migrate_callbacks(super().load_checkpoint(path, *arguments, **options))
