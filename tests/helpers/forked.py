"""Training runs in processes of their own, forked from one that has imported everything: a kill costs no import."""

import importlib
import multiprocessing
import os
import sys
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pmf_lightning.commands.train", "pmf_lightning.evaluation.small_data", "sklearn.datasets"]
)


def start(overrides, log, fault=None, rank=None, world=2, port=None):
    """Start a run of the train command; ``fault``: "module:function" that spoils something first, and its arguments."""
    process = FORKS.Process(target=_child, args=([*map(str, overrides)], str(log), fault, rank, world, port))
    process.start()
    return process


def run(overrides, log, fault=None, code=0, seconds=600):
    """Run to the end; return what it printed."""
    process = start(overrides, log, fault)
    assert finish(process, seconds) == code, Path(log).read_text()[-3000:]
    return Path(log).read_text()


def finish(process, seconds=600):
    """Wait; return the exit code (negative: the signal)."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run did not end within {seconds} s")
    return process.exitcode


def spoil(fault):
    """Call ``fault``: "module:function" and its arguments, or None."""
    if fault:
        place, *arguments = fault
        module, _, function = place.partition(":")
        getattr(importlib.import_module(module), function)(*arguments)


def _child(overrides, log, fault, rank, world, port):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    import torch

    from pmf_lightning import compose
    from pmf_lightning.cli import with_one_line_errors
    from pmf_lightning.commands import train
    from pmf_lightning.training import summary

    torch.set_num_threads(1)
    summary.pictures = train.pictures = lambda folder: (None, None)  # they take longer than these few steps
    if rank is not None:
        names = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {name: str(value) for name, value in {**names, "MASTER_PORT": port}.items()}
    spoil(fault)
    sys.argv = ["train", *overrides]
    with_one_line_errors(lambda: train.run(compose(overrides)))
