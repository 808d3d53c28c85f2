"""Run tasks in worker processes with a progress count; the failure of one task stops all of them.

The function for a task takes (task, tick) and calls ``tick()`` once per record. The tick advances the progress bar. It
raises Stopped if the work should end: another task failed, Ctrl-C, or the main process has died.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pmf_lightning.utils.errors import UserError

Task, Result = TypeVar("Task"), TypeVar("Result")
Tick = Callable[[], None]
_shared: dict[str, Any] = {}  # worker state, set once at start


class Stopped(Exception):
    """Raised in a worker to stop its task."""


def in_processes(
    work: Callable[[Task, Tick], Result], tasks: Iterable[Task], num_workers: int, progress: Callable[[int], None]
) -> Iterator[Result]:
    """Yield the results of ``work(task, tick)`` in order of completion, with a bounded queue of submitted tasks.

    ``progress`` is called regularly with the number of ticks. An error in a task stops all others and is raised here.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ticks, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (ticks, stop, os.getpid()))
    waiting: set[Future] = set()
    queue = iter(tasks)
    try:
        while True:
            while len(waiting) < num_workers + 1 and (task := next(queue, None)) is not None:
                waiting.add(pool.submit(_do, work, task))
            if not waiting:
                break
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            progress(ticks.value)
            yield from (future.result() for future in done)
        progress(ticks.value)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended abruptly, most often because memory ran out: run again with a smaller num_workers; "
            "finished shards are reused"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(ticks: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main process stops the workers
    warnings.simplefilter("ignore")  # Pillow's warnings about unusual metadata of readable images
    _shared.update(ticks=ticks, stop=stop, parent=parent)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """Exit when the main process has died; otherwise an idle worker would wait forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do(work: Callable[[Task, Tick], Result], task: Task) -> Result:
    return work(task, _tick)


def _tick() -> None:
    if _shared["stop"].is_set() or os.getppid() != _shared["parent"]:
        raise Stopped
    with _shared["ticks"].get_lock():
        _shared["ticks"].value += 1
