"""One CPU thread or all of them, by the times that steps or a trial took; and a fixed number for a while.

PyTorch's threads wait for each other at every operation. When another program takes one core, a step of a small model
with all threads takes 3 to 30 times as long as alone, and one of one thread about as long as before.
"""

import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from statistics import median

import torch

AUTO = "auto"
CHOSEN_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables that set the number of threads
TRIES = 3  # steps of each number of threads in the first comparison
SLOW = 2.5  # a step of all threads is slow from this many times the usual time
SLOW_STEPS = 2  # in a row, after which one thread takes over
BETTER = 0.9  # all threads take over from one if they need less than this part of its time
FEW = 5  # steps that make a usual time
REMEMBERED = 50  # steps of which the usual time is the median
COST = 0.02  # most of the time that tries of all threads may lose
FIRST_WAIT, LONGEST_WAIT = 50, 5000  # steps of one thread before all are tried again
TRIAL, TRIAL_SIDE = 5, 512  # matrix products of a trial, and their rows

Threads = Generator[int, float, None]


class ThreadChoice:
    """Chooses the number of threads of the next step, one or ``most``.

    The first step warms up. Then both numbers take turns, and the faster one stays. All threads give way to one when
    steps become several times slower than usual. They are tried again after growing numbers of steps, so rarely that
    the tries cost at most 2 % of the time. The clock is the caller's.

    Args:
        most: the other number of threads, 2 or more.
        start: the number to start with, without a comparison, as a run that is resumed does; None compares.

    Attributes:
        threads: the number for the next step.
        chosen: the number that holds between tries; None before the first comparison has ended.
    """

    def __init__(self, most: int, start: int | None = None):
        self.most = most
        self.chosen = start if start in (1, most) else None
        self._line: str | None = None
        self._steps = self._all_steps()
        self.threads = next(self._steps)

    def record(self, seconds: float) -> str | None:
        """Take the time of a step with ``threads`` threads; return a line about the choice if it changed."""
        self._line = None
        self.threads = self._steps.send(seconds)
        return self._line

    def _all_steps(self) -> Threads:
        """Yield the threads of each step, and receive its seconds."""
        yield self.chosen or 1
        if self.chosen is None:
            yield from self._compare()
        while True:
            yield from self._until_slow() if self.chosen == self.most else self._until_calm()

    def _compare(self) -> Threads:
        one, every = [], []
        while len(every) < TRIES and (not every or every[-1] < SLOW * median(one)):
            one.append((yield 1))
            every.append((yield self.most))
        self._choose(1 if median(one) < median(every) else self.most, median(one), median(every))

    def _until_slow(self) -> Threads:
        usual: deque[float] = deque(maxlen=REMEMBERED)
        slow: list[float] = []
        while len(slow) < SLOW_STEPS:
            seconds = yield self.most
            if len(usual) >= FEW and seconds > SLOW * median(usual):
                slow.append(seconds)
            else:
                usual.append(seconds)
                slow.clear()
        self._choose(1, None, median(slow), f", usually {median(usual):.2g} s")

    def _until_calm(self) -> Threads:
        wait = FIRST_WAIT
        while True:
            usual: deque[float] = deque(maxlen=REMEMBERED)
            for _ in range(wait):
                usual.append((yield 1))
            one = median(usual)
            tried = [(yield self.most)]
            if tried[0] < BETTER * one:
                tried.append((yield self.most))
            if max(tried) < BETTER * one:
                self._choose(self.most, one, median(tried))
                return
            lost = sum(tried) - one * len(tried)
            wait = max(min(2 * wait, LONGEST_WAIT), round(lost / one / COST))

    def _choose(self, threads: int, one: float | None, every: float, more: str = "") -> None:
        self.chosen = threads
        times = [] if one is None else [f"{one:.2g} s with one"]
        times.append(f"{every:.2g} s with {self.most}{more}")
        self._line = f"threads=auto: {threads} from here on (a step takes {', '.join(times)})"


def may_choose() -> bool:
    """Return whether this process has several threads whose number the user has not set in the environment."""
    return torch.get_num_threads() > 1 and not any(os.environ.get(name) for name in CHOSEN_BY_USER)


@contextmanager
def one_if_busy(device: torch.device | str) -> Iterator[None]:
    """Use one thread in the block, and print a line, if now a trial takes longer with all; otherwise change nothing.

    It acts on a CPU, where ``may_choose`` holds.
    """
    most = torch.get_num_threads()
    if torch.device(device).type != "cpu" or not may_choose():
        yield
        return
    with fixed(faster_in_trial(most)):
        yield


def faster_in_trial(most: int) -> int:
    """Return 1, with a printed line, or ``most``: the number of threads with which a matrix product takes less time."""
    one, every = _trial(1), _trial(most)
    if every <= one:
        return most
    print(f"threads: 1 (a product takes {one:.2g} s with one thread and {every:.2g} s with {most})", flush=True)
    return 1


def _trial(threads: int) -> float:
    """Return the seconds of a matrix product with ``threads`` threads, the median of a few: one may be disturbed."""
    with fixed(threads):
        square = torch.ones(TRIAL_SIDE, TRIAL_SIDE)
        (square @ square).exp()  # starts the threads
        seconds = []
        for _ in range(TRIAL):
            begun = time.perf_counter()
            (square @ square).exp()
            seconds.append(time.perf_counter() - begun)
        return median(seconds)


@contextmanager
def fixed(number: int | None) -> Iterator[None]:
    """Use ``number`` torch threads in the block, and the previous number afterwards; None changes nothing inside."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
