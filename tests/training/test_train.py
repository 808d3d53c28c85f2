"""Training end to end: what a run writes, that it repeats itself, and that it goes on as if it had never stopped."""

import json
import signal
import sys

import forked
import numpy as np
import pytest
import torch
from kept import assert_same, weights
from PIL import Image
from processes import program
from shrunk import RUN

from pmf_lightning import UserError, compose, image_noise, load_checkpoint
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import OPTIONS, numbered_images
from pmf_lightning.train import train
from pmf_lightning.training.callbacks.sample_grids import SampleGrids
from pmf_lightning.training.plots import save_grid


def run(folder, *overrides):
    return train(compose([*RUN, f"run_dir={folder}", *overrides]))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run of 30 steps."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, run(folder)


@pytest.mark.slow
def test_what_a_run_writes(straight):
    folder, summary = straight
    names = {"config.yaml", "metrics.jsonl", "metrics.csv", "summary.json", "curves.png", "checkpoints", "grids"}
    assert names <= {path.name for path in folder.iterdir()}
    grids = {path.name for path in (folder / "grids").iterdir()}
    assert grids == {f"{n:010d}-{w}.png" for n in (160, 320, 480) for w in ("raw", "2k")} | {"final.png"}
    assert json.loads((folder / "summary.json").read_text()) == summary
    wanted = "fd fd_floor n class_accuracy real_accuracy omega ema images_per_second steps wall_seconds checkpoint grid"
    assert set(wanted.split()) <= summary.keys()
    assert (summary["steps"], summary["fd"], summary["ema"]) == (30, None, "2k")
    assert summary["images_per_second"] > 0
    logged = rows(folder)
    assert [row["step"] for row in logged] == list(range(1, 31))
    assert all(row["images"] == 16 * row["step"] and row["loss_u"] > 0 and row["loss_v"] > 0 for row in logged)
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    assert columns[:2] == ["step", "images"]
    assert {"loss_u", "loss_v", "grad_norm"} <= set(columns)
    assert len(lines) == 30


def test_the_last_pictures_are_drawn_where_the_training_was(tmp_path, monkeypatch):
    """And not on the CPU, where Lightning leaves the network: with a large one and many steps that takes hours."""
    homes, drawn, draw = [], {}, SampleGrids.draw

    def moved(self, device):
        homes.append(device)
        return self  # all is on the CPU here

    def noting(self, module, weights, name, **changes):
        drawn[name] = homes[-1]
        return draw(self, module, weights, name, **changes)

    monkeypatch.setattr(GenerativeModule, "to", moved)
    monkeypatch.setattr(GenerativeModule, "cpu", lambda self: moved(self, "the CPU, when all is over"))
    monkeypatch.setattr(SampleGrids, "draw", noting)
    run(tmp_path, "images=16")
    assert drawn["final.png"] == torch.device("cpu")
    assert homes[-1] == "the CPU, when all is over"


@pytest.mark.slow
def test_training_learns(straight):
    errors = [row["loss_u"] for row in rows(straight[0])]
    assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])


@pytest.mark.slow
def test_same_command_same_numbers_and_no_global_random_numbers(straight, tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert_same(weights(straight[0]), weights(tmp_path / "again"))
    losses = [[row["loss_u"] for row in rows(folder)] for folder in (straight[0], tmp_path / "again")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_repeated_command_leaves_a_finished_run_alone(straight, tmp_path, capsys):
    folder = tmp_path / "again"
    summary = run(folder, "steps=2", "ckpt=auto")
    saved = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run(folder, "steps=2", "ckpt=auto") == summary
    assert "finished already" in capsys.readouterr().out
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == saved
    for ckpt in ("auto", "last"):
        (folder / "summary.json").unlink()  # killed between the last checkpoint and the summary
        again = run(folder, "steps=2", f"ckpt={ckpt}")
        assert {name for name in summary if summary[name] != again[name]} <= {"wall_seconds", "images_per_second"}
    with pytest.raises(UserError, match=r"steps=2: .*last.ckpt has 2 already; set more steps or images"):
        run(folder, "steps=2", "ckpt=last")
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"steps=1: .*last.ckpt has 2 already; set more steps or images"):
        run(folder, "steps=1", "ckpt=auto")
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        UserError,
        match=r"seed=1: the finished run in run_dir=.* has seed=0; set that to resume it, or start another run",
    ):
        run(folder, "steps=2", "ckpt=auto", "seed=1")
    with pytest.raises(UserError, match=r"ckpt=auto: .*set run_dir"):
        train(compose([*RUN, "ckpt=auto"]))


@pytest.mark.slow
def test_another_seed_gives_other_numbers(straight, tmp_path):
    run(tmp_path / "other", "seed=1", "steps=1")
    assert rows(tmp_path / "other")[0]["loss_u"] != rows(straight[0])[0]["loss_u"]


@pytest.mark.slow
def test_micro_batches_change_rounding_only(straight, tmp_path):
    run(tmp_path / "micro", "steps=5", "micro_batch=4")
    whole, micro = (read_checkpoint(path) for path in (_after_five(tmp_path), tmp_path / "micro"))
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(micro["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def _after_five(tmp_path):
    run(tmp_path / "whole", "steps=5")
    return tmp_path / "whole"


def command(folder, *overrides):
    return [sys.executable, "-m", "pmf_lightning.train", *RUN, f"run_dir={folder}", *overrides]


@pytest.mark.slow
def test_killed_run_goes_on_bit_for_bit(straight, tmp_path):
    folder = tmp_path / "killed"
    killed = ("faults:signal_before", 8, signal.SIGKILL)
    forked.run([*RUN, f"run_dir={folder}"], tmp_path / "log", killed, code=-signal.SIGKILL)
    assert read_checkpoint(folder)["global_step"] == 5
    summary = run(folder, "ckpt=last")
    assert summary["steps"] == 30
    assert_same(weights(straight[0]), weights(folder))
    mine, theirs = ([(row["step"], row["loss_u"]) for row in rows(path)] for path in (folder, straight[0]))
    assert mine == theirs


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(straight, tmp_path):
    folder = tmp_path / "stopped"
    slow = "checkpoint.every_images=1000000"  # nothing but the stop itself saves
    stopped = ("faults:signal_before", 4, signal.SIGINT)
    output = forked.run([*RUN, f"run_dir={folder}", slow], tmp_path / "log", stopped)
    assert f"run_dir={folder} ckpt=last" in output
    assert json.loads((folder / "summary.json").read_text())["stopped_early"]
    assert read_checkpoint(folder)["global_step"] == 4
    run(folder, "ckpt=last")
    assert_same(weights(straight[0]), weights(folder))


def test_finished_runs_are_not_overwritten(straight):
    folder, _ = straight
    with pytest.raises(UserError, match="add ckpt=last"):
        run(folder)
    with pytest.raises(UserError, match="30 already"):
        run(folder, "ckpt=last")


@pytest.mark.slow
def test_last_without_run_dir_finds_the_newest(straight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run with a checkpoint"):
        train(compose([*RUN, "ckpt=last"]))
    first = train(compose([*RUN, "steps=2"]))
    more = train(compose([*RUN, "steps=4", "ckpt=last"]))
    assert more["checkpoint"] == first["checkpoint"]
    assert more["steps"] == 4


def test_checkpoint_gives_the_module_back(straight):
    folder, _ = straight
    raw, judged = load_checkpoint(folder, "raw"), load_checkpoint(folder)
    stored = read_checkpoint(folder)
    name = "trunk.0.attention.q.weight"
    assert torch.equal(raw.network.state_dict()[name], stored["state_dict"][f"network.{name}"])
    assert torch.equal(judged.network.state_dict()[name], stored["ema"]["2k"][name])
    assert not torch.equal(raw.network.state_dict()[name], judged.network.state_dict()[name])
    with pytest.raises(UserError, match=r"ema=3k: .*(1k|2k)"):
        load_checkpoint(folder, "3k")


def test_a_grid_has_a_column_for_each_class_by_the_weights_that_it_names(straight, tmp_path):
    grids, drawn = straight[0] / "grids", {}
    for name in ("raw", "2k"):
        module = load_checkpoint(straight[0], name)
        options = {option: module.config["sampling"][option] for option in OPTIONS}
        labels = torch.tensor([label for row in range(4) for label in range(10)])
        images = numbered_images(module, labels, 0, 0, **options)
        drawn[name] = levels(save_grid(images, 10, tmp_path / f"{name}.png", module.class_names))
    for name, other, file in (("raw", "2k", "0000000480-raw"), ("2k", "raw", "0000000480-2k"), ("2k", "raw", "final")):
        seen = levels(grids / f"{file}.png")  # after so few steps raw and averaged weights differ by a level
        assert 10 * (seen != drawn[name]).sum() < (seen != drawn[other]).sum()


def levels(path):
    """The pixels of a picture as integers."""
    return np.asarray(Image.open(path), dtype=int)


def test_checkpoint_that_names_foreign_code_is_refused(straight, tmp_path):
    checkpoint = torch.load(straight[0] / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["config"]["objective"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"os\.system"):
        load_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.slow
def test_quality_is_measured_and_changes_nothing_in_training(tmp_path, monkeypatch):
    monkeypatch.setenv("PMF_CACHE", str(tmp_path / "cache"))
    quick = ["metrics=small", "metrics.every_images=48", "metrics.classifier.steps=5", "steps=6"]
    summary = run(tmp_path / "measured", *quick)
    run(tmp_path / "unmeasured", "steps=6")
    assert_same(weights(tmp_path / "measured"), weights(tmp_path / "unmeasured"))
    assert summary["n"] == 360
    assert summary["fd"] > summary["fd_floor"] > 0
    assert 0 <= summary["class_accuracy"] <= 1
    measured = [row["step"] for row in rows(tmp_path / "measured") if "fd_digits" in row]
    assert measured == [3, 6]


def test_averages_follow_the_formula(tmp_path):
    from pmf_lightning import build, ema_beta

    run(tmp_path / "run", "steps=1", "ema.halflife_kimg=[0.05]", "ema.rampup_ratio=1", "sampling.ema=0.05k")
    start = build(compose([*RUN])).network.state_dict()
    checkpoint = read_checkpoint(tmp_path / "run")
    beta = ema_beta(images_seen=16, batch=16, half_life_images=50, rampup_ratio=1)
    for name, value in checkpoint["ema"]["0.05k"].items():
        expected = beta * start[name] + (1 - beta) * checkpoint["state_dict"][f"network.{name}"]
        torch.testing.assert_close(value, expected)


@pytest.mark.slow
def test_wandb_offline_keeps_its_run_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ["logger=wandb", "logger.wandb.mode=offline"]
    run(tmp_path / "run", *options, "steps=2")
    first = read_checkpoint(tmp_path / "run")["wandb_run"]
    run(tmp_path / "run", *options, "steps=4", "ckpt=last")
    assert read_checkpoint(tmp_path / "run")["wandb_run"] == first
    run(tmp_path / "second", *options, "steps=1")
    assert read_checkpoint(tmp_path / "second")["wandb_run"] != first


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    shared = ["steps=3", "checkpoint.every_images=16"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = program(*command(tmp_path / "two", *shared, *two))
    assert done.returncode == 0, done.stderr[-2000:]
    run(tmp_path / "one", *shared)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    losses = [[row["loss_u"] for row in rows(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_noise_of_an_image_is_its_own():
    together = image_noise(0, 0, 5, (1, 4, 4))
    assert torch.equal(together[3], image_noise(0, 3, 1, (1, 4, 4))[0])
