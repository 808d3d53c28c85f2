"""Run independent pieces of work side by side on the cores of a CPU, one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

FEW = 4  # pieces per thread below which threads would end at too different times


def side_by_side(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every function of ``pieces``, without gradients.

    With torch.get_num_threads() above one they are called from as many threads, each of which computes alone. All cores
    then work on large operations, and wait for each other once in the end instead of after each operation, which is
    slow beside another program. Few pieces are called in turn, each with all threads.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < FEW * threads:
        for piece in pieces:
            _call(piece)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(_call, pieces))
    finally:
        torch.set_num_threads(threads)  # the number also holds for threads that start later


@torch.no_grad()  # which holds for the thread that calls it
def _call(piece: Callable[[], None]) -> None:
    piece()
