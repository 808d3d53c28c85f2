"""Losses and gradients that are not finite: the step is skipped and counted, and not for ever; nothing bad is saved."""

import math
from unittest.mock import Mock

import pytest
import torch
from lightning import LightningModule, Trainer
from processes import python
from shrunk import RUN
from test_train import assert_same, rows, weights

from pmf_lightning import load_checkpoint
from pmf_lightning.cli import with_one_line_errors
from pmf_lightning.commands import train as train_module
from pmf_lightning.config.compose import compose
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.train import train
from pmf_lightning.training import summary
from pmf_lightning.training.callbacks.build import TrainingCallbacks
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.loss_by_time import LossByTime
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.utils.errors import Diverged

EVERY_STEP = "checkpoint.every_images=16"


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


SPOIL = {
    "the loss and its gradient": lambda loss: loss * math.nan,
    "the gradient alone": BadGradient.apply,
    "the loss alone": lambda loss: loss + math.inf,
}


@pytest.fixture
def spoil(monkeypatch):
    """Spoil the training steps ``steps`` (from 1), in their micro-batches ``parts`` (all by default)."""

    def arrange(steps, how="the loss and its gradient", parts=None):
        original = GenerativeModule.training_step

        def training_step(self, batch, batch_idx):
            answer = original(self, batch, batch_idx)
            part = batch_idx % self.trainer.accumulate_grad_batches
            if self.global_step + 1 in steps and (parts is None or part in parts):
                answer["loss"] = SPOIL[how](answer["loss"])
            return answer

        monkeypatch.setattr(GenerativeModule, "training_step", training_step)

    return arrange


def run(folder, *overrides, pictures=False):
    """Train; pictures take longer than these few steps."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(summary, "pictures", lambda folder: (None, None))
            patch.setattr(train_module, "pictures", lambda folder: (None, None))
        return train(compose([*RUN, f"run_dir={folder}", "sample_grid.every_images=1000000", *overrides]))


def moments(folder):
    """All numbers of the optimiser's state, its step counts included."""
    states = read_checkpoint(folder)["optimizer_states"][0]["state"]
    return {(key, name): torch.as_tensor(value) for key, state in states.items() for name, value in state.items()}


def raw(folder):
    return {name: value for name, value in weights(folder).items() if name.startswith("raw.")}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Runs of two good steps, by optimiser."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in ("muon", "adam")}
    for name, folder in folders.items():
        run(folder, f"optimizer={name}", "steps=2")
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "how"), [("muon", "the loss alone"), ("adam", "the gradient alone")])
def test_a_skipped_step_changes_neither_weights_nor_moments(two_steps, tmp_path, spoil, capsys, optimizer, how):
    spoil([3], how)
    summary = run(tmp_path, f"optimizer={optimizer}", "steps=3")
    assert read_checkpoint(tmp_path)["global_step"] == 3
    assert_same(raw(two_steps[optimizer]), raw(tmp_path))
    assert_same(moments(two_steps[optimizer]), moments(tmp_path))
    assert summary["skipped_steps"] == 1
    output = capsys.readouterr().out
    assert f"step 3: {how.removesuffix(' alone')} is not finite; skipped" in output
    assert "skipped_steps" in output
    assert [row["skipped_steps"] for row in rows(tmp_path)] == [0, 0, 1]


@pytest.mark.slow
def test_the_run_goes_on_with_other_images_and_draws(two_steps, tmp_path, spoil, monkeypatch):
    seen = []
    original = GenerativeModule.training_step

    def training_step(self, batch, batch_idx):
        seen.append((self.global_step, batch[0].clone()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GenerativeModule, "training_step", training_step)
    spoil([2])
    summary = run(tmp_path, "steps=4", "log_every_steps=4")
    assert (summary["steps"], summary["skipped_steps"]) == (4, 1)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert not torch.equal(seen[1][1], seen[2][1])
    counts = {int(value) for (_, name), value in moments(tmp_path).items() if name == "step"}
    assert counts == {3}
    for name, value in weights(tmp_path).items():
        assert value.isfinite().all(), name


@pytest.mark.slow
def test_one_bad_micro_batch_skips_the_whole_step(two_steps, tmp_path, spoil):
    run(tmp_path / "good", "steps=1", "micro_batch=4")
    spoil([2], parts=[1])
    summary = run(tmp_path / "bad", "steps=2", "micro_batch=4")
    assert summary["skipped_steps"] == 1
    assert_same(raw(tmp_path / "good"), raw(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("losses", "gradient", "what"),
    [
        ((1.0, 2.0), 1.0, None),
        ((math.inf, 2.0), 1.0, "the loss"),
        ((1.0, math.nan), 1.0, "the loss"),
        ((1.0, 2.0), math.nan, "the gradient"),
    ],
)
def test_a_step_is_skipped_for_the_loss_of_any_of_its_micro_batches(tmp_path, capsys, losses, gradient, what):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.full_like(weight, gradient)
    optimizer, module = torch.optim.SGD([weight], lr=1), Mock(spec=LightningModule)
    trainer = Mock(spec=Trainer, global_step=4, max_steps=9, log_every_n_steps=1, world_size=1)
    finite = SkipNonFinite(3, tmp_path, StopSignals())
    for loss in losses:
        finite.on_before_backward(trainer, module, torch.tensor(loss))
    finite.on_before_optimizer_step(trainer, module, optimizer)
    assert (finite.skipped, weight.grad is None) == (int(what is not None), what is not None)
    assert capsys.readouterr().out.startswith(f"step 5: {what} is not finite; skipped" if what else "")
    finite.on_before_backward(trainer, module, torch.tensor(1.0))  # of the next step
    weight.grad = torch.ones_like(weight)
    finite.on_before_optimizer_step(trainer, module, optimizer)
    assert (finite.skipped, finite.in_a_row) == (int(what is not None), 0)


def test_finite_steps_are_left_alone(two_steps, tmp_path, monkeypatch):
    """Bit for bit the run without the callbacks that watch."""
    listed = TrainingCallbacks.listed
    monkeypatch.setattr(
        TrainingCallbacks, "listed", lambda self: [c for c in listed(self) if c not in (self.finite, self.by_time)]
    )
    run(tmp_path, "steps=2")
    assert_same(weights(two_steps["muon"]), weights(tmp_path))
    assert_same(moments(two_steps["muon"]), moments(tmp_path))
    assert "grad_norm" in rows(two_steps["muon"])[0]
    assert "grad_norm" not in rows(tmp_path)[0]


def test_the_gradient_norm_is_logged(tmp_path, monkeypatch):
    norms = []

    def before_step(self, optimizer):
        squares = [weight.grad.double().square().sum() for weight in self.parameters() if weight.grad is not None]
        norms.append(torch.stack(squares).sum().sqrt().item())

    monkeypatch.setattr(GenerativeModule, "on_before_optimizer_step", before_step)
    run(tmp_path, "steps=2", "trainer.gradient_clip_val=0.1")
    assert min(norms) > 0.1  # logged before clipping
    assert [row["grad_norm"] for row in rows(tmp_path)] == pytest.approx(norms, rel=1e-5)


def test_too_many_in_a_row_end_the_run(tmp_path, spoil):
    """The last good checkpoint stays, and a run goes on from it as if nothing had been."""
    spoil([3, 4, 5, 6], "the gradient alone")
    folder = tmp_path / "run"
    with pytest.raises(Diverged) as error:
        run(folder, "steps=8", EVERY_STEP, "log_every_steps=100", "skip_nonfinite.max_in_a_row=3", pictures=True)
    message = str(error.value)
    assert message.startswith("step 5: the gradient is not finite, 3 steps in a row (skip_nonfinite.max_in_a_row=3)")
    assert f"the last good checkpoint is {folder}/checkpoints/last.ckpt" in message
    assert "lower optimizer.lr" in message
    assert "du_dt by time" in message
    assert (folder / "time_bins.png").is_file()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert read_checkpoint(folder)["global_step"] == 2  # steps 3 and 4 were due as well
    assert all(value.isfinite().all() for value in weights(folder).values())
    load_checkpoint(folder)
    (row,) = rows(folder)  # the window in which it diverged is logged
    assert row["step"] == 4
    assert any(name.startswith("du_dt/t") for name in row)
    assert (folder / "metrics.csv").is_file()


def test_a_good_step_begins_the_count_anew(tmp_path, spoil):
    spoil([2, 3, 5, 6])
    summary = run(tmp_path, "steps=7", "skip_nonfinite.max_in_a_row=3", EVERY_STEP)
    assert (summary["steps"], summary["skipped_steps"]) == (7, 4)
    assert read_checkpoint(tmp_path)["global_step"] == 7
    bad = [row["step"] for row in rows(tmp_path) if row["grad_norm"] is None]
    assert bad == [2, 3, 5, 6]


def test_the_count_goes_on_after_a_stop(tmp_path, spoil):
    spoil([2, 3])
    run(tmp_path, "steps=2", "skip_nonfinite.max_in_a_row=2")
    with pytest.raises(Diverged, match="step 3: the loss is not finite, 2 steps in a row"):
        run(tmp_path, "steps=3", "skip_nonfinite.max_in_a_row=2", "ckpt=last")


def test_a_save_waits_for_the_next_good_step(tmp_path, spoil):
    spoil([2, 3])
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        save = CheckpointWriter.save
        patch.setattr(
            CheckpointWriter, "save", lambda self, trainer: (steps.append(trainer.global_step), save(self, trainer))
        )
        run(tmp_path, "steps=6", "checkpoint.every_images=32")
    assert steps == [4, 6]


@pytest.mark.parametrize("part", ["weights", "averages", "moments"])
def test_what_is_not_finite_is_never_saved(tmp_path, monkeypatch, part):
    """A finite gradient can still overflow what comes after it."""

    def spoil(self, trainer, pl_module, *_):
        if trainer.global_step == 2:
            weight = next(pl_module.network.parameters())
            averages = next(c for c in trainer.callbacks if isinstance(c, EMA)).averages["2k"]
            moments = trainer.optimizers[0].state[weight]["momentum"]
            found = {"weights": weight.data, "averages": next(iter(averages.values())), "moments": moments}
            found[part].view(-1)[-1] = math.nan

    monkeypatch.setattr(LossByTime, "on_train_batch_end", spoil)
    with pytest.raises(Diverged, match=f"step 2: the {part} are not finite and are not saved; the last good"):
        run(tmp_path, "steps=3", EVERY_STEP)
    assert read_checkpoint(tmp_path)["global_step"] == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_going_on_takes_the_new_learning_rate(two_steps, tmp_path):
    """The remedy that the message names has an effect."""
    run(tmp_path, "steps=1")
    run(tmp_path, "steps=2", "ckpt=last", "optimizer.lr=0")
    groups = read_checkpoint(tmp_path)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0, 0]
    once = tmp_path / "once"
    run(once, "steps=1")
    assert_same(raw(once), raw(tmp_path))


def test_commands_say_it_in_one_line_and_exit_with_3(capsys):
    def work():
        raise Diverged("step 7: the loss is not finite")

    with pytest.raises(SystemExit) as stop:
        with_one_line_errors(work)
    assert stop.value.code == 3
    assert capsys.readouterr().err == "error: step 7: the loss is not finite\n"


TWO = """
import os
import sys
import time
from pathlib import Path

import torch

from pmf_lightning.commands import train
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.train import main

original = GenerativeModule.training_step


def training_step(self, batch, batch_idx):
    answer = original(self, batch, batch_idx)
    if self.global_rank == 1 and self.global_step + 1 in (2, 4, 5):
        answer["loss"] = answer["loss"] + float("inf")  # a finite gradient: the other process sees nothing of it
    return answer


def on_exception(self, trainer, pl_module, exception):
    torch.save(pl_module.state_dict(), Path(__file__).parent / f"{trainer.global_rank}.pt")


def pictures(folder, draw=train.pictures):
    if os.environ.get("LOCAL_RANK", "0") == "0":
        time.sleep(6)  # Lightning looks every five seconds for a process that ended badly, and kills the first one then
    draw(folder)


GenerativeModule.training_step = training_step
SkipNonFinite.on_exception = on_exception
train.pictures = pictures
main()
"""


@pytest.mark.slow
def test_two_processes_decide_alike(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "micro_batch=4"]
    overrides = [*RUN, *two, f"run_dir={tmp_path}/run", "steps=9", EVERY_STEP, "skip_nonfinite.max_in_a_row=2"]
    done = python(script, *overrides)
    assert done.returncode == 3, done.stderr[-2000:]
    assert "step 5: the loss is not finite, 2 steps in a row" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_checkpoint(tmp_path / "run")["global_step"] == 3
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(*ranks)
    stored = read_checkpoint(tmp_path / "run")["state_dict"]
    assert_same(stored, ranks[0])  # weights of step 3, which the checkpoint has too
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == [0, 1, 1, 2]
