"""threads=auto in a run: what it times, where it acts, and what a checkpoint keeps of it."""

import json
import math
from unittest.mock import Mock

import pytest
import torch
from lightning import LightningModule, Trainer
from shrunk import RUN

from pmf_lightning import compose
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.train import train
from pmf_lightning.training import summary
from pmf_lightning.training.callbacks import threads as callback_file
from pmf_lightning.training.callbacks.threads import CpuThreads
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.utils.threads import CHOSEN_BY_USER, fixed

MICRO_BATCHES = 2
MODULE = Mock(spec=LightningModule)


@pytest.fixture
def two_threads(monkeypatch):
    for name in CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    with fixed(2):
        yield


class Machine:
    """A clock and a trainer: a micro-batch takes a time for each number of threads."""

    def __init__(self, monkeypatch, seconds, world_size=1, device="cpu"):
        self.now, self.seconds, self.used = 0.0, seconds, []
        self.trainer = Mock(spec=Trainer, global_step=0, world_size=world_size)
        self.trainer.strategy.root_device = torch.device(device)
        monkeypatch.setattr(callback_file.time, "perf_counter", lambda: self.now)

    def train(self, callback, steps, evaluation=0.0):
        for _ in range(steps):
            for part in range(MICRO_BATCHES):
                callback.on_train_batch_start(self.trainer, MODULE)
                self.now += self.seconds[torch.get_num_threads()]
                if part == MICRO_BATCHES - 1:
                    self.trainer.global_step += 1
                    self.used.append(torch.get_num_threads())
                    with callback.progress.paused():
                        self.now += evaluation
                callback.on_train_batch_end(self.trainer, MODULE)
                self.now += 7  # reading data, saving a checkpoint
        return self.used


def started(machine, threads="auto", state=None, compiled=False):
    callback = CpuThreads(ThroughputBar(16, 1), threads, compiled)
    if state is not None:
        callback.load_state_dict(state)
    callback.on_train_start(machine.trainer, MODULE)
    return callback


def test_steps_are_timed_without_pauses_and_the_number_is_set(two_threads, monkeypatch, capsys):
    machine = Machine(monkeypatch, {1: 0.2, 2: 0.1})
    callback = started(machine)
    assert machine.train(callback, 9, evaluation=30.0) == [1, 1, 2, 1, 2, 1, 2, 2, 2]
    line = "step 7: threads=auto: 2 from here on (a step takes 0.4 s with one, 0.2 s with 2)"
    assert line in capsys.readouterr().out
    assert callback.state_dict() == {"threads": 2, "changes": 1}
    machine.train(callback, 5)
    machine.seconds = {1: 0.2, 2: 3.0}
    machine.train(callback, 2)
    assert callback.state_dict() == {"threads": 1, "changes": 2}
    callback.on_train_end(machine.trainer, MODULE)
    assert (torch.get_num_threads(), callback.chosen) == (2, 1)


def test_a_resumed_run_starts_with_the_stored_number(two_threads, monkeypatch):
    machine = Machine(monkeypatch, {1: 0.2, 2: 0.1})
    callback = started(machine, state={"threads": 1, "changes": 3})
    assert machine.train(callback, 10) == [1] * 10
    callback.on_exception(machine.trainer, MODULE, KeyboardInterrupt())
    assert callback.state_dict() == {"threads": 1, "changes": 3}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("stored", "trial", "used"), [(None, 1, 1), (None, 2, 2), (1, 2, 1)])
def test_a_compiled_run_keeps_one_number_since_another_compiles_anew(stored, trial, used, two_threads, monkeypatch):
    monkeypatch.setattr(callback_file, "faster_in_trial", lambda most: {2: trial}[most])
    machine = Machine(monkeypatch, {1: 0.2, 2: 0.1})
    callback = started(machine, state={"threads": stored, "changes": 0}, compiled=True)
    assert machine.train(callback, 9) == [used] * 9
    assert callback.state_dict() == {"threads": used, "changes": 0}
    callback.on_train_end(machine.trainer, MODULE)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("options", [{"threads": None}, {"threads": 2}, {"world_size": 2}, {"device": "cuda"}], ids=str)
def test_elsewhere_it_does_nothing(options, two_threads, monkeypatch):
    threads = options.pop("threads", "auto")
    machine = Machine(monkeypatch, {1: 0.1, 2: 3.0}, **options)
    callback = started(machine, threads)
    assert machine.train(callback, 9) == [2] * 9
    assert callback.state_dict() == {"threads": None, "changes": 0}


def test_a_user_who_set_the_environment_has_decided(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine = Machine(monkeypatch, {1: 0.1, 2: 3.0})
    assert machine.train(started(machine), 9) == [2] * 9


def test_only_the_first_changes_are_printed(two_threads, monkeypatch, capsys):
    machine = Machine(monkeypatch, {1: 0.2, 2: 0.1})
    callback = started(machine, state={"threads": 2, "changes": 0})
    for _ in range(4):
        machine.seconds = {1: 0.2, 2: 0.1}
        machine.train(callback, 70)
        machine.seconds = {1: 0.2, 2: 3.0}
        machine.train(callback, 5)
    assert callback.changes == 7
    assert capsys.readouterr().out.count("threads=auto") == 5


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_digits", "imf_digits"])
def test_weights_depend_on_the_number_of_threads_by_rounding_alone(model, two_threads, tmp_path, monkeypatch):
    """On processors with AVX-512 not even by that."""
    monkeypatch.setattr(summary, "pictures", lambda folder: (None, None))
    weights = []
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        options = [f"model={model}", f"threads={threads}", f"run_dir={folder}"]
        train(compose([*options, "steps=3", "metrics=none", "sample_grid.enabled=false"]))
        weights.append(read_checkpoint(folder)["state_dict"])
    apart = math.sqrt(sum((value - weights[1][name]).double().square().sum() for name, value in weights[0].items()))
    assert apart < 1e-6 * math.sqrt(sum(value.double().square().sum() for value in weights[0].values()))


@pytest.mark.slow
def test_a_run_chooses_stores_and_resumes(two_threads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(summary, "pictures", lambda folder: (None, None))
    tiny = [*RUN, f"run_dir={tmp_path}", "sample_grid.enabled=false"]
    train(compose([*tiny, "steps=9"]))
    state = read_checkpoint(tmp_path)["callbacks"]["CpuThreads"]
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert state["threads"] in (1, 2)
    assert (stored["threads"], stored["thread_changes"]) == (state["threads"], state["changes"])
    assert "threads=auto: " in (tmp_path / "train.log").read_text()
    assert torch.get_num_threads() == 2
    capsys.readouterr()
    train(compose([*tiny, "steps=11", "ckpt=last", "threads=1"]))
    assert json.loads((tmp_path / "summary.json").read_text())["threads"] == 1
    assert "threads auto -> 1" in capsys.readouterr().out
