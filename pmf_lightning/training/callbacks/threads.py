"""Choose the number of CPU threads while a run trains (threads=auto)."""

import time

import torch
from lightning import LightningModule, Trainer
from tqdm.auto import tqdm

from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.utils.threads import AUTO, ThreadChoice, faster_in_trial, may_choose

_MOST_LINES = 5  # printed changes of a run; all of them are counted


class CpuThreads(OncePerStep):
    """Trains each step with one thread or all, by the times of the steps before (``ThreadChoice``).

    It acts on a CPU in a run of one process, unless the environment sets the number of threads. Pauses of ``progress``,
    in which callbacks evaluate and draw, and the time between steps are not counted. The number is stored in
    checkpoints, and a resumed run starts with it. Compiled code is made for one number of threads, so with ``compiled``
    a trial before the first step decides, and the number stays.

    Args:
        progress: the clock that evaluation pauses.
        threads: the option ``threads=``; nothing is chosen unless it is "auto".
        compiled: the option ``compile=``.

    Attributes:
        changes: how often the choice was made or changed, over the complete run.
    """

    def __init__(self, progress: ThroughputBar, threads: int | str | None, compiled: bool = False):
        self.progress, self.threads, self.compiled = progress, threads, compiled
        self.changes = 0
        self._stored: int | None = None
        self._choice: ThreadChoice | None = None
        self._most = 1
        self._begun = self._spent = 0.0  # the clock at the start of this micro-batch; seconds of those before it

    @property
    def chosen(self) -> int | None:
        """The number of threads that steps take; None while it is not chosen, or not by this callback."""
        return self._stored if self._choice is None else self._choice.chosen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to choose, if there is a choice."""
        super().on_train_start(trainer, pl_module)
        alone = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
        if self.threads != AUTO or not alone or not may_choose():
            return
        self._most = torch.get_num_threads()
        if self.compiled:
            self._stored = self._stored or faster_in_trial(self._most)
            torch.set_num_threads(self._stored)
        else:
            self._choice = ThreadChoice(self._most, self._stored)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Set the number of threads, which is one for all micro-batches of a step."""
        if self._choice is not None:
            torch.set_num_threads(self._choice.threads)
            self._begun = self._clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Take the time of a completed step."""
        if self._choice is None:
            return
        self._spent += self._clock() - self._begun
        if not self.new_step(trainer):
            return
        line, self._spent = self._choice.record(self._spent), 0.0
        if line is not None:
            self.changes += 1
            if self.changes <= _MOST_LINES:
                tqdm.write(f"step {self.step}: {line}")

    def _clock(self) -> float:
        return time.perf_counter() - self.progress.idle

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to all threads."""
        if self._choice is not None:
            self._stored, self._choice = self._choice.chosen, None
        if self._most > 1:
            torch.set_num_threads(self._most)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Go back to all threads."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, int | None]:
        """Return the choice and the number of changes, for the checkpoint."""
        return {"threads": self.chosen, "changes": self.changes}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Restore the choice and the number of changes."""
        self._stored, self.changes = state["threads"], state["changes"]
