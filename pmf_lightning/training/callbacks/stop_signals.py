"""Signals that end a run after a step, the same step in all processes."""

import os
import signal
from contextlib import suppress
from types import FrameType

from lightning import Trainer
from torch import Tensor

from pmf_lightning.utils.signals import RECEIVED, SIGNALS

# SIGUSR1 and SIGUSR2: SLURM's, before the time limit; submitit sends the second
REQUEUE = tuple(set(SIGNALS) - {signal.SIGINT, signal.SIGTERM})


class StopSignals:
    """What signals ask of a run: SIGINT (Ctrl-C) and SIGTERM to stop, SIGUSR1 and SIGUSR2 to stop and be queued again.

    A signal may reach one process or all of them, each within another step. A handler only takes it down; once per
    step the processes add up their ``votes`` and ``agree``. A second SIGINT ends the process at once. A multirun ends
    with the run, by what is noted in ``RECEIVED``.

    Attributes:
        stopped: the run ends before its last step.
        requeue: ... and is to be queued again.
    """

    def __init__(self):
        self.stopped = self.requeue = False
        self._asked: signal.Signals | None = None
        self._handlers: dict[int, object] = {}

    def listen(self) -> None:
        """Take signals down from now on."""
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._record)

    def release(self) -> None:
        """Give the signals back to whom they belonged to before."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number)
        RECEIVED.append(self._asked)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        with suppress(OSError):
            os.write(1, f"\n{self._asked.name}: stopping after this step{again}\n".encode())  # print may be under way

    def requests(self, like: Tensor) -> Tensor:
        """Return [2] numbers on the device of ``like``: whether this process was asked to stop, and to requeue."""
        return like.new_tensor([self._asked is not None, self._asked in REQUEUE])

    def decide(self, trainer: Trainer, stop: float, requeue: float) -> None:
        """End the run after the running step if any process was asked to; the arguments are sums over all."""
        if stop and trainer.global_step + 1 < trainer.max_steps:
            self.stopped, self.requeue = True, requeue > 0
            trainer.should_stop = True
