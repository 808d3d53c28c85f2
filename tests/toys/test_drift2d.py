"""The drifting toy: its data and start, a short run that must leave one mode for two, what it writes, bad input."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from pmf_lightning import UserError, compose
from pmf_lightning.toy import toy
from pmf_lightning.toys.drift2d import (
    SETTINGS,
    Drift2dRun,
    TwoModes,
    build,
    noise,
    reference,
    run,
    shares,
    snapshot_steps,
)

TINY = ["seeds=[0,1]", "steps=6", "problems=2", "samples=8", "positives=4", "network.width=8", "network.depth=3"]
TINY += ["evaluation.points=60", "evaluation.batches=2", "film.frames=4", "film.shown=20"]


def config(*overrides):
    return compose(["toys=drift2d", *overrides], "toy")


@pytest.fixture(scope="module")
def default():
    return config()


# Data and start


def test_data_has_two_round_modes():
    modes = TwoModes([[-1, 2], [3, 2]], 0.5)
    points = modes.points(0, "test", 0, 20000)
    right = points[:, 0] > 1
    assert right.double().mean().item() == pytest.approx(0.5, abs=0.02)
    for side, centre in ((points[~right], (-1, 2)), (points[right], (3, 2))):
        torch.testing.assert_close(side.mean(0), torch.tensor(centre).float(), rtol=0, atol=0.03)
        torch.testing.assert_close(side.std(0), torch.tensor([0.5, 0.5]), rtol=0.03, atol=0)
    # Within 3 spreads of its own centre lies 1 - exp(-4.5) of a round Gaussian in the plane.
    assert sum(shares(points, modes, 3.0)) == pytest.approx(0.98889, abs=0.003)
    assert torch.equal(points, modes.points(0, "test", 0, 20000))
    assert not torch.equal(points, modes.points(0, "test", 1, 20000))


def test_shares_count_what_is_near():
    modes = TwoModes([[0, 0], [10, 0]], 1.0)
    points = torch.tensor([[0.0, 1.9], [0.0, 2.1], [10.0, 0.0], [9.0, -1.0]])
    assert shares(points, modes, 2) == [0.25, 0.5]


@pytest.mark.parametrize("start", ["between", "far", "collapsed"])
def test_the_start_is_exact(default, start):
    network, eps = build(default, Drift2dRun(start, 0)), noise(0, "test", 0, 50)
    known = default.starts[start]
    torch.testing.assert_close(network(eps), torch.tensor(list(known.centre)) + known.spread * eps, rtol=0, atol=0)
    other = build(default, Drift2dRun(start, 1))
    assert not torch.equal(network.mlp.hidden[0].weight, other.mlp.hidden[0].weight)
    network(eps).square().sum().backward()
    assert network.mlp.heads["x"].weight.grad.norm() > 0


def test_the_film_runs_from_the_start_and_is_closest_there():
    steps = snapshot_steps(1000, 50)
    assert steps[0] == 0
    assert steps[-1] < 1000
    assert 45 < len(steps) <= 49
    assert steps[10] < 60
    assert snapshot_steps(3, 50) == [0, 1, 2]


# Training


@pytest.mark.slow
def test_a_collapsed_start_covers_both_modes_and_norms_say_so():
    """A quarter of the default run."""
    cfg = config("steps=300", "problems=2")
    result, best = run(cfg, Drift2dRun("collapsed", 0), lambda n: n), reference(cfg)
    log = result["log"]
    assert log[0]["shares"] == [1, 0]
    assert min(result["first"], result["second"]) > 0.3
    assert result["elsewhere"] < 0.3
    assert result["distance"] < 0.3
    norms = [sum(entry["force_norm"][0] for entry in part) / 5 for part in (log[:5], log[-5:])]
    assert norms[1] < 0.6 * norms[0]
    assert norms[1] < 3 * best["force_norm"][0]
    assert all(3 < entry["loss"] < 9 for entry in log)  # and the loss stays where it is
    assert best["first"] + best["second"] > 0.98
    assert best["distance"] < 0.05


# Runs


@pytest.mark.slow
def test_everything_is_written_and_arms_are_cached(tmp_path):
    paths = toy(config(*TINY, f"out={tmp_path}"))
    assert set(paths) == {"figure.png", "drift2d.gif", "table.md", "results.json"}
    assert min(Image.open(paths["figure.png"]).size) > 400
    film = Image.open(paths["drift2d.gif"])
    assert film.is_animated
    assert film.n_frames == len(snapshot_steps(6, 4)) + 1 == 3
    rows = paths["table.md"].read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| between", "| far", "| collapsed", "| (the data)"]
    content = json.loads(paths["results.json"].read_text())
    assert len(content["arms"]) == 6
    for line in content["summary"]:
        arms = [arm for arm in content["arms"] if arm["start"] == line["start"]]
        assert line["first"] == pytest.approx(sum(arm["first"] for arm in arms) / 2)
        assert line["least_share"] == min(min(arm["first"], arm["second"]) for arm in arms)
        assert len(line["force_norm"]) == 3
        for arm in arms:
            assert arm["first"] + arm["second"] + arm["elsewhere"] == pytest.approx(1)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").iterdir()}
    assert len(written) == 6
    # Another place of one start makes its arms anew and leaves the others.
    again = json.loads(toy(config(*TINY, "starts.far.spread=0.5", f"out={tmp_path}"))["results.json"].read_text())
    assert len(list((tmp_path / "arms").iterdir())) == 6 + 2
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for before, after in zip(content["arms"], again["arms"], strict=True):
        assert (before == after) == (before["start"] != "far")


def test_the_same_seed_gives_the_same_numbers():
    cfg = config(*TINY)
    first, second, other = (run(cfg, Drift2dRun("far", seed), lambda n: n) for seed in (0, 0, 1))
    del first["train_seconds"], second["train_seconds"]
    assert first == second
    assert other["log"] != first["log"]


def test_settings_of_arms_cover_the_configuration(default):
    assert set(default) == {*SETTINGS, "experiment", "out", "starts", "seeds"}


# Bad input


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 0, ["steps=0"]),
        ("samples", 1, ["samples=1", "at least 2"]),
        ("evaluation.points", 1, ["evaluation.points=1"]),
        ("film.shown", 5000, ["film.shown=5000", "4000"]),
        ("seeds", [1, 1], ["seeds=[1, 1]", "each value once"]),
        ("starts", {}, ["starts=[]"]),
        ("starts.far", {"centre": [0, 0, 0], "spread": 1}, ["starts.far"]),
        ("starts.far.spread", -1, ["starts.far", "0 or more"]),
        ("modes.centres", [[0, 0]], ["modes.centres", "two points"]),
        ("modes.spread", 0, ["modes.spread=0"]),
        ("loss.temperatures", [0.0], ["temperatures=[0.0]"]),
        ("loss.normalisation", "x", ["normalisation=x", "both, y, none"]),
        ("network.depth", 1, ["network", "depth 1"]),
        ("optimizer.lr", -1, ["optimizer", "learning rate", "-1"]),
        ("out", "/proc/nowhere", ["out=/proc/nowhere"]),
    ],
)
def test_bad_numbers_are_named_before_any_work(default, tmp_path, key, value, words):
    refuses_before_any_work(default, tmp_path, key, value, words)


def refuses_before_any_work(cfg, folder, key, value, words):
    """Assert that the toy of ``cfg`` names a bad value by ``words``, before it writes an arm."""
    cfg = OmegaConf.merge(cfg, {"out": str(folder)})
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(UserError) as caught:
        toy(cfg)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "arms").exists()
