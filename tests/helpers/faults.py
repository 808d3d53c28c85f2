"""What goes wrong in the runs of test_faults.py: functions that spoil something in a process before it trains."""

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from pmf_lightning import shard
from pmf_lightning.data.shards.writing import pixels
from pmf_lightning.pipeline import checkpoint_io
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.training.callbacks import build
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation
from pmf_lightning.training.callbacks.loss_by_time import LossByTime
from pmf_lightning.training.loggers.jsonl import JSONLLogger


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(checkpoint, file):
    """Write as torch.save does, but only half of it, and die."""
    torch.serialization.save(checkpoint, _Half(file))


class _Half:
    def __init__(self, file):
        self.file, self.left = file, 200_000

    def write(self, data):
        self.file.write(bytes(data)[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            self.file.flush()
            die()
        return len(data)

    def flush(self):
        pass


def die_in_save(moment, nth):
    """Die in save number ``nth``: at a call of os, or with half of the file written."""
    write, save, count = checkpoint_io.write, torch.save, [0]

    def counting(checkpoint, path):
        count[0] += 1
        if count[0] == nth and moment == "half a file":
            torch.save = half_a_file
            torch.serialization.save = save
        elif count[0] == nth:
            setattr(os, moment, _after(getattr(os, moment.removeprefix("after_"))) if "after_" in moment else die)
            if "after_" in moment:
                setattr(os, moment.removeprefix("after_"), getattr(os, moment))
        write(checkpoint, path)

    checkpoint_io.write = counting


def _after(call):
    def calling(source, target):
        call(source, target)
        if str(target).endswith("last.ckpt"):
            die()

    return calling


def at_step(actions):
    """Call ``actions[step]`` after steps, before anything is written."""
    original = LossByTime.on_train_batch_end

    def hook(self, trainer, pl_module, *rest):
        if trainer.global_step in actions:
            actions.pop(trainer.global_step)(trainer)
        return original(self, trainer, pl_module, *rest)

    LossByTime.on_train_batch_end = hook


def small_files(first, last, rank=0):
    """Let the kernel refuse files above 100 kB from step ``first`` until after step ``last``, on one process."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        def act(trainer):
            if trainer.global_rank == rank:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

        return act

    at_step({first: limit(100_000), last + 1: limit(most)})


def full_disk(folder, first, last, blind):
    """Fill the small disk that ``folder`` is from step ``first`` until after step ``last``.

    ``blind``: nobody looks at the room beforehand, so that the write itself fails.
    """
    if blind:
        checkpoint_io.size = lambda checkpoint: 0

    def fill(trainer):
        with (Path(folder) / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with contextlib.suppress(OSError):
            while os.fstat(1).st_dev == os.stat(folder).st_dev:  # the messages of the run go there too
                os.write(1, b" ")

    at_step({first: fill, last + 1: lambda trainer: (Path(folder) / "ballast").unlink()})


def refuse_saves(number, first=0, last=10**9):
    """Raise an error of the disk half-way through every save from step ``first`` to ``last``."""
    save = torch.save

    def refusing(checkpoint, file):
        if first <= checkpoint["global_step"] <= last:
            file.write(b"half")
            raise OSError(number, os.strerror(number))
        save(checkpoint, file)

    torch.save = refusing


def bad_images(steps):
    """Put a NaN into one pixel of the batches of ``steps`` (from 1)."""
    inputs = GenerativeModule.inputs

    def spoiled(self, *arguments, **options):
        images = inputs(self, *arguments, **options)
        if self.global_step + 1 in steps:
            images = images.clone()
            images.view(-1)[3] = math.nan
        return images

    GenerativeModule.inputs = spoiled


class Scripted(SampleEvaluation):
    """A measurement whose values are given."""

    rank_zero_only, name = True, "fd_scripted"

    def __init__(self, values, **others):
        super().__init__(every_steps=2, extra_steps=[], **others)
        self.values = values

    def evaluate(self, module, generate):
        return self.values.get(module.global_step, math.inf)

    def metrics(self, result):
        return {self.name: result}

    def summary(self, result):
        return {"fd": result}

    short_summary = summary

    def display_names(self):
        return {}


def scripted_quality(values):
    """Measure ``values[step]`` every two steps."""
    build.make_evaluation = lambda parts, **others: Scripted(values, **others)


def both(*faults):
    """Several at once: (name, arguments...)."""
    for name, *arguments in faults:
        globals()[name](*arguments)


def on_rank(rank, name, *arguments):
    """Only in one process of several."""
    if int(os.environ.get("LOCAL_RANK", "0")) == rank:
        globals()[name](*arguments)


def set_environment(variables):
    """Set variables of the environment, and go to the folder that PWD names."""
    os.environ |= variables
    if "PWD" in variables:
        os.chdir(variables["PWD"])


def signal_before(step, number, part=1):
    """Send a signal to this process in the middle of ``step``: before its micro-batch number ``part``."""
    training_step, parts = GenerativeModule.training_step, [0]

    def signalling(self, *arguments):
        if self.global_step + 1 == step:
            parts[0] += 1
            if parts[0] == part:
                os.kill(os.getpid(), number)
        return training_step(self, *arguments)

    GenerativeModule.training_step = signalling


def kill_all_before(step):
    """Kill this process and all that it has started, in the middle of ``step``."""
    os.setsid()
    at_step({step - 1: lambda trainer: os.killpg(0, signal.SIGKILL)})


def kill_in_run(number):
    """Die after the first step of run ``number`` of a sweep, its log begun and no checkpoint saved."""
    original, runs = LossByTime.on_train_batch_end, [0]

    def hook(self, trainer, *rest):
        runs[0] += trainer.global_step == 1
        if runs[0] == number:
            die()
        return original(self, trainer, *rest)

    LossByTime.on_train_batch_end = hook


def wait_for_file(path, waiting):
    """Make the file ``waiting`` in the first step, and wait there for ``path``."""

    def wait(trainer):
        Path(waiting).touch()
        while not Path(path).exists():
            time.sleep(0.01)

    at_step({1: wait})


def die_at(place):
    """Die where "module:function" is called."""
    module, _, function = place.partition(":")
    setattr(importlib.import_module(module), function, die)


def half_a_row(step):
    """Die when half of the row of ``step`` is in the log."""
    write = JSONLLogger._write

    def halved(self):
        if self._tail[-1]["step"] == step:
            with self.path.open("r+") as file:
                file.seek(self._start)
                file.write(json.dumps(self._tail[-1])[:20])
            die()
        write(self)

    JSONLLogger._write = halved


def shard_killed_in(name, whom, arguments):
    """Call the shard command in a process group of its own; kill it half-way through the shard ``name``.

    ``whom``: "all processes", or "the main one", which the worker then waits for.
    """
    os.setsid()
    main, write = os.getpid(), pixels.write_shard

    def halved(records):
        for number, record in enumerate(records):
            if number == 20:
                os.killpg(0, signal.SIGKILL) if whom == "all processes" else os.kill(main, signal.SIGKILL)
                while os.getppid() == main:
                    time.sleep(0.01)
            yield record

    pixels.write_shard = lambda tar, records: write(tar, halved(records) if tar.name == name else records)
    sys.argv = ["shard", *arguments]
    shard.main()
