"""Training on several processes of this machine, as torchrun starts them; the interpreter is warmed up once."""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

WARM = [
    *("pmf_lightning.train", "matplotlib.pyplot", "torch._dynamo", "torch.distributed._composable", "torchvision"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.tensor._ops", "sklearn.datasets"),
    *("torch._inductor", "scipy.stats", "pytest", "webdataset"),
]
_context = None


def together(size: int, work: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """Run ``work(*arguments)`` on ``size`` processes that know each other; return what each returned.

    Whatever one raises is raised here, as an AssertionError with its traceback; the others are ended.
    """
    context, port = _warm(), _free_port()
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, size, port, theirs, work, arguments), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_result(pipe, rank, timeout) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(timeout=0 if any(p.exitcode for p in processes) else 10)
            if process.is_alive():
                process.kill()


def _warm():
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(WARM)
    return _context


def _result(pipe, rank: int, timeout: float) -> Any:
    assert pipe.poll(timeout), f"rank {rank} is not done after {timeout} s"
    good, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
    assert good, f"rank {rank}:\n{value}"
    return value


def _run(rank: int, size: int, port: int, pipe, work, arguments) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    if size == 1:
        for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            del os.environ[name]
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


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
