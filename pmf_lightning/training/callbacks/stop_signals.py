"""Stop a run on a signal, after the same step in all processes."""

import os
import signal
from contextlib import suppress
from types import FrameType

import torch
from lightning import Trainer
from torch import Tensor

from pmf_lightning.utils.signals import RECEIVED, SIGNALS

# SIGUSR1 and SIGUSR2: sent by SLURM before the time limit; submitit uses SIGUSR2
REQUEUE = tuple(set(SIGNALS) - {signal.SIGINT, signal.SIGTERM})


class StopSignals:
    """Stop requests by signals: SIGINT (Ctrl-C) and SIGTERM stop a run, SIGUSR1 and SIGUSR2 stop and requeue it.

    A signal may reach one process or all of them, each within another step. The handler only records it; once per step
    the ranks sum their ``requests`` and ``decide`` together. A second SIGINT ends the process at once. The signal is
    also recorded in ``RECEIVED``, which ends a multirun.

    Attributes:
        stopped: the run ends before its last step.
        requeue: the stopped run is to be queued again.
    """

    def __init__(self):
        self.stopped = self.requeue = False
        self._received: signal.Signals | None = None
        self._handlers: dict[int, object] = {}

    def listen(self) -> None:
        """Install the signal handlers."""
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._record)

    def release(self) -> None:
        """Restore the previous signal handlers."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        RECEIVED.append(self._received)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        with suppress(OSError):
            # print is not reentrant
            os.write(1, f"\n{self._received.name}: stopping after this step{again}\n".encode())

    def requests(self, like: Tensor) -> Tensor:
        """Return [2] numbers on the device of ``like``: whether this process received a stop, and a requeue request."""
        asked = torch.tensor([self._received is not None, self._received in REQUEUE])
        return asked.to(like, non_blocking=True)

    def decide(self, trainer: Trainer, stop: float, requeue: float) -> None:
        """Stop the run after the current step if any process requests it; the arguments are sums over all processes."""
        if stop and trainer.global_step + 1 < trainer.max_steps:
            self.stopped, self.requeue = True, requeue > 0
            trainer.should_stop = True
