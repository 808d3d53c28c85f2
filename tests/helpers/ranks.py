"""Training on several processes of this machine, as torchrun starts them; the interpreter is warmed up once."""

import faulthandler
import io
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import TCPStore

WARM = [
    *("pmf_lightning.commands.train", "matplotlib.pyplot", "torchvision"),
    *("torch._dynamo", "torch.distributed._composable"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.tensor._ops", "sklearn.datasets"),
    *("torch._inductor", "scipy.stats", "pytest", "webdataset"),
]
_context = None


@dataclass
class _Rank:
    number: int
    process: BaseProcess
    pipe: Connection  # brings its answer
    stack: Path  # where it writes what it is doing, when asked by a signal


def together(size: int, work: Callable[..., Any], *arguments: Any, timeout: float = 600) -> list[Any]:
    """Run ``work(*arguments)`` on ``size`` processes that know each other; return what each returned.

    What the first to fail raised is raised here, as an AssertionError with its traceback, and the others are ended at
    once: they may be waiting for it. Those that are not done in time are shown with their stacks.
    """
    context = _warm()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun too lends its own to the ranks
    ranks = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(size):
                ranks.append(_start(context, number, size, store.port, Path(folder), work, arguments))
            answers = _answers(ranks, timeout)
            for rank in ranks:
                rank.process.join(timeout=10)
            return answers
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.join()


def _warm():
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(WARM)
    return _context


def _start(context, number: int, size: int, port: int, folder: Path, work, arguments) -> _Rank:
    ours, theirs = context.Pipe(duplex=False)
    stack = folder / str(number)
    process = context.Process(target=_run, args=(number, size, port, stack, theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    return _Rank(number, process, ours, stack)


def _answers(ranks: list[_Rank], timeout: float) -> list[Any]:
    """Return the answers in the order of ranks, taken as they come: the first rank may wait for one that failed."""
    _until(lambda: all(rank.stack.exists() or not rank.process.is_alive() for rank in ranks))  # have imported all
    deadline, answers = time.monotonic() + timeout, {}
    while len(answers) < len(ranks):
        open_ones = {rank.pipe: rank for rank in ranks if rank.number not in answers}
        ready = wait(open_ones, max(0, deadline - time.monotonic()))
        assert ready, f"not done after {timeout} s:\n{_stacks(open_ones.values())}"
        answers |= {open_ones[pipe].number: _answer(open_ones[pipe]) for pipe in ready}
        failures = [f"rank {number}:\n{value}" for number, (good, value) in answers.items() if not good]
        assert not failures, "\n".join(failures)
    return [answers[rank.number][1] for rank in ranks]


def _answer(rank: _Rank) -> tuple[bool, Any]:
    try:
        return torch.load(io.BytesIO(rank.pipe.recv_bytes()), weights_only=False)
    except EOFError:
        rank.process.join(timeout=10)
        return False, f"gone without an answer, exit code {rank.process.exitcode}"


def _until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _stacks(ranks) -> str:
    for rank in ranks:
        os.kill(rank.process.pid, signal.SIGQUIT)
    # They write without the help of their interpreters, whatever these are busy with; the main thread comes last.
    _until(lambda: all('File "' in rank.stack.read_text() for rank in ranks if rank.stack.exists()))
    time.sleep(0.5)
    return "\n".join(
        f"rank {rank.number}:\n{rank.stack.read_text() if rank.stack.exists() else 'had not begun'}" for rank in ranks
    )


def _run(rank: int, size: int, port: int, stack: Path, pipe, work, arguments) -> None:
    faulthandler.register(signal.SIGQUIT, stack.open("w"))
    if size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    rank_zero_only.rank = rank  # which Lightning read when it was imported, before this process was forked
    torch.set_num_threads(1)
    try:
        answer = True, work(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    try:
        file = io.BytesIO()
        torch.save(answer, file)  # not as it is: tensors would be shared memory of a process that ends
        pipe.send_bytes(file.getvalue())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
