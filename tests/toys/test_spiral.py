"""The spiral of RDM: its data and scores, the six losses against formulas, tiny runs, what they write, bad input."""

import json
import math

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from test_drift2d import refuses_before_any_work

from pmf_lightning import compose
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sliced_wasserstein
from pmf_lightning.toy import toy
from pmf_lightning.toys.point_network import PointNetwork
from pmf_lightning.toys.spiral import SETTINGS, SpiralRun, build, rate_at, real_features, run
from pmf_lightning.toys.spiral_data import Spiral, scores
from pmf_lightning.toys.spiral_losses import LOSSES, bandwidths, new_rows
from pmf_lightning.toys.spiral_report import published_scores, summarise, table
from pmf_lightning.toys.swiss_roll import random_plane
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import Diverged

TINY = ["dimension=6", "data.points=60", "batches=[4,8]", "seeds=[0,1]", "steps=3", "network.width=8"]
TINY += ["loss.drift.positives=10", "loss.mmd_nystrom.landmarks=20", "loss.mmd_fourier.frequencies=16"]
TINY += ["loss.sliced.directions=8", "evaluation.points=50", "evaluation.curve=100", "evaluation.shown=20"]
SPIRAL = Spiral(inner=0.5, outer=2.5, turns=2, noise=0.05)
SCORED = {"anchors": 60, "near": 0.15, "curve": 1500}
OPTIONS = {
    "frechet": {},
    "sliced": {"directions": 32},
    "drift": {"positives": 40, "temperatures": [0.06, 0.2]},
    "mmd_fourier": {"scales": [0.4, 1.6], "frequencies": 64},
    "mmd_exact": {"scales": [0.4, 1.6]},
    "mmd_nystrom": {"scales": [0.4, 1.6], "landmarks": 30, "jitter": 1e-6},
}


def config(*overrides):
    return compose(["toys=spiral", *overrides], "toy")


@pytest.fixture(scope="module")
def default():
    return config()


@pytest.fixture(scope="module")
def tiny():
    return config(*TINY)


def features(name, count=40, dimension=6):
    """Points of the spiral in 6 dimensions, float64."""
    return SPIRAL.points(0, name, count).double() @ random_plane(dimension, 0).double().T


# Data and scores


def test_the_curve_is_an_archimedean_spiral_of_two_turns():
    curve = SPIRAL.curve(5)  # t = 0, 1/4, 1/2, 3/4, 1: every half turn the radius grows by 1/2
    expected = torch.tensor([[0.5, 0], [-1, 0], [1.5, 0], [-2, 0], [2.5, 0]])
    torch.testing.assert_close(curve, expected, rtol=0, atol=1e-6)


def test_points_are_the_curve_with_noise():
    points = SPIRAL.points(0, "test", 4000)
    found = scores(points, SPIRAL, **SCORED)
    assert found["recall"] == 1
    # The distance from a line is |N(0, 0.05)|, whose median is 0.6745 * 0.05; the paper has 0.033.
    assert found["median_distance"] == pytest.approx(0.0337, abs=0.002)
    assert points.norm(dim=1).mean().item() == pytest.approx(1.5, abs=0.03)  # uniform t, not uniform length
    assert torch.equal(points, SPIRAL.points(0, "test", 4000))
    assert not torch.equal(points, SPIRAL.points(1, "test", 4000))


def test_real_features_are_on_a_plane(default):
    real, plane = real_features(default, 42), random_plane(64, 42)
    assert real.shape == (2000, 64)
    torch.testing.assert_close(plane.T @ plane, torch.eye(2), rtol=0, atol=1e-6)
    on_plane = real @ plane
    torch.testing.assert_close(on_plane, SPIRAL.points(0, "data", 2000), rtol=0, atol=1e-5)
    torch.testing.assert_close(on_plane @ plane.T, real, rtol=0, atol=1e-5)
    assert not torch.allclose(real, real_features(default, 43))
    torch.testing.assert_close(on_plane, real_features(default, 43) @ random_plane(64, 43), rtol=0, atol=1e-5)


def test_scores_of_constructed_points():
    curve = SPIRAL.curve(1500)
    assert scores(curve, SPIRAL, **SCORED) == {"recall": 1, "median_distance": 0}
    half = scores(curve[:750], SPIRAL, **SCORED)
    assert half["recall"] == pytest.approx(0.5, abs=0.02)
    assert half["median_distance"] == 0
    assert scores(curve + 10, SPIRAL, **SCORED)["recall"] == 0
    circle = Spiral(inner=1, outer=1, turns=1, noise=0)
    away = {near: scores(1.1 * circle.curve(1500), circle, 60, near, 1500) for near in (0.05, 0.15)}
    assert [away[near]["recall"] for near in away] == [0, 1]
    assert away[0.15]["median_distance"] == pytest.approx(0.1, abs=1e-5)


# Network and rate


def test_the_network_has_torchs_initialisation(default):
    network = build(default, SpiralRun("drift", 8, 0))
    sizes = [tuple(layer.weight.shape) for layer in network.layers]
    assert sizes == [(256, 2), (256, 256), (256, 256), (256, 256), (64, 256)]
    for layer in network.layers:
        bound = 1 / math.sqrt(layer.in_features)
        for numbers in (layer.weight, layer.bias):
            assert 0.9 * bound < numbers.abs().max() <= bound
            assert numbers.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    again, other = (build(default, SpiralRun("sliced", 32, seed)) for seed in (0, 1))
    assert torch.equal(again.layers[1].bias, network.layers[1].bias)
    assert not torch.equal(other.layers[1].bias, network.layers[1].bias)
    with pytest.raises(ValueError, match="depth 1"):
        PointNetwork(noise=2, features=3, width=4, depth=1)


def test_the_network_is_a_chain_of_relus():
    network = PointNetwork(noise=2, features=1, width=1, depth=2)
    for layer, (weight, bias) in zip(network.layers, (([[1.0, -1.0]], 0.5), ([[2.0]], -3.0)), strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor([bias])
    found = network(torch.tensor([[2.0, 0.5], [0.0, 4.0]]))
    assert found.tolist() == [[1.0], [-3.0]]


def test_the_rate_is_that_of_torchs_cosine():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=1e-4)
    for step in range(21):
        assert 1e-3 * rate_at(step, 20, 0.1) == pytest.approx(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()


# Losses


def kernel(x, y, width):
    return torch.exp(-(x[:, None] - y).square().sum(2) / (2 * width**2))


def value_and_gradient(loss, points):
    points = points.clone().requires_grad_()
    value = loss(points)
    return value.detach(), torch.autograd.grad(value, points)[0]


def test_bandwidths_are_multiples_of_the_median_distance():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert bandwidths(real, [0.5, 2]) == pytest.approx([1, 4])


def test_new_rows_are_drawn_anew_and_none_twice():
    real = torch.arange(20.0)[:, None]
    first, second = new_rows(real, 20, 0, 0), new_rows(real, 12, 0, 1)
    assert sorted(first[:, 0].tolist()) == list(range(20))
    assert len(set(second[:, 0].tolist())) == 12
    assert torch.equal(second, new_rows(real, 12, 0, 1))
    assert not torch.equal(second, new_rows(real, 12, 0, 2))
    assert not torch.equal(second, new_rows(real, 12, 1, 1))


def test_exact_and_nystrom_are_sums_of_plain_kernels():
    """With every real row as landmark or row of the batch, both are the squared MMD, up to a constant."""
    real, points = features("real"), features("points") + 0.3
    scales = [0.4, 1.6]
    widths = bandwidths(real, scales)

    def plain(x):
        return sum(kernel(x, x, width).mean() - 2 * kernel(x, real, width).mean() for width in widths)

    value, gradient = value_and_gradient(plain, points)
    exact = LOSSES["mmd_exact"](real, 0, scales)
    nystrom = LOSSES["mmd_nystrom"](real, 0, scales, landmarks=40, jitter=1e-9)
    constant = sum(kernel(real, real, width).mean() for width in widths)
    for loss, shift, close in ((exact, 0, 1e-12), (nystrom, constant, 1e-6)):
        found, slope = value_and_gradient(lambda x, loss=loss: loss(x, 3), points)
        torch.testing.assert_close(found, value + shift, rtol=close, atol=close)
        torch.testing.assert_close(slope, gradient, rtol=close, atol=close)


def test_nystrom_of_few_landmarks_is_the_official_feature_map():
    """psi(x) = k(x, Z) (K + jitter I)^(-1/2), and the attraction is mean psi(g) . mean psi(r)."""
    real, points, jitter = features("real"), features("points") + 0.3, 1e-6
    (width,) = bandwidths(real, [0.4])
    marks = real[rng.permutation(5, "landmarks", count=40)[:12]]
    values, vectors = torch.linalg.eigh(kernel(marks, marks, width) + jitter * torch.eye(12))
    root = vectors / values.sqrt()

    def plain(x):
        attraction = (kernel(x, marks, width) @ root).mean(0) @ (kernel(real, marks, width) @ root).mean(0)
        return kernel(x, x, width).mean() - 2 * attraction

    loss = LOSSES["mmd_nystrom"](real, 5, [0.4], landmarks=12, jitter=jitter)
    gradients = [value_and_gradient(one, points)[1] for one in (plain, lambda x: loss(x, 0))]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_fourier_estimates_the_mmd_with_all_real_rows():
    real, points = features("real"), features("points") + 0.3
    scales = [0.4, 1.6]
    exact = LOSSES["mmd_exact"](real, 0, scales)(points, 0)
    exact += sum(kernel(real, real, width).mean() for width in bandwidths(real, scales))
    estimate = LOSSES["mmd_fourier"](real, 0, scales, frequencies=4000)(points, 0)
    assert estimate.item() == pytest.approx(exact.item(), rel=0.1)
    assert LOSSES["mmd_fourier"](real, 1, scales, frequencies=4000)(points, 0) != estimate


def test_frechet_and_sliced_of_a_shift():
    """Moments that differ by a shift are its square apart; so are sets, over many directions times the dimension."""
    real = features("real")
    shifted = real + torch.tensor([0.0, 3, 0, 0, 4, 0]).double()
    assert LOSSES["frechet"](real, 0)(shifted, 0).item() == pytest.approx(25, rel=1e-3)
    assert 6 * LOSSES["sliced"](real, 0, directions=4000)(shifted, 0).item() == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_moves_points_to_the_data(name):
    real = features("real", 200).float()
    points = torch.nn.Parameter(features("points", 16).float() * 0.3 + 0.5)
    loss = LOSSES[name](real, 0, **OPTIONS[name])
    optimizer, distances = torch.optim.Adam([points], lr=0.05), []
    for step in range(41):
        distances.append(sliced_wasserstein(points.detach(), new_rows(real, 16, 7, 0), sliced_directions(6, 16, 0)))
        optimizer.zero_grad()
        value = loss(points, step)
        assert value.ndim == 0
        value.backward()
        optimizer.step()
    assert distances[-1] < 0.6 * distances[0]


# Runs


def test_the_same_seed_gives_the_same_numbers(tiny):
    for name in ("sliced", "mmd_nystrom"):
        first, second, other = (run(tiny, SpiralRun(name, 4, seed), lambda n: n) for seed in (0, 0, 1))
        del first["train_seconds"], second["train_seconds"]
        assert first == second
        assert other["points"] != first["points"]


@pytest.mark.slow
def test_a_run_learns_the_spiral():
    """A tenth of the default steps, in fewer dimensions."""
    cfg = config("dimension=8", "steps=800", "network.width=64", "evaluation.points=1000", "evaluation.shown=10")
    result = run(cfg, SpiralRun("mmd_nystrom", 32, 0), lambda n: n)
    assert result["recall"] > 0.8
    assert result["off_plane"] < 0.1


@pytest.mark.slow
def test_everything_is_written_and_arms_are_cached(tmp_path):
    paths = toy(config(*TINY, f"out={tmp_path}"))
    assert set(paths) == {"figure.png", "table.md", "results.json"}
    assert min(Image.open(paths["figure.png"]).size) > 400
    rows = [row.split(" | ") for row in paths["table.md"].read_text().splitlines()]
    assert [row[1] for row in rows[2:14]] == ["4", "8"] * 6
    by_name = {(row[0], row[1]): row for row in rows[2:14]}
    assert by_name["| MMD, Nystrom", "8"][3] == "0.98"
    assert by_name["| MMD, Nystrom", "8"][5] == "0.158"
    assert by_name["| MMD, Nystrom", "4"][3] == ""
    content = json.loads(paths["results.json"].read_text())
    assert len(content["arms"]) == 24
    for line in content["summary"]:
        arms = [arm for arm in content["arms"] if (arm["distance"], arm["batch"]) == (line["distance"], line["batch"])]
        assert line["recall"] == pytest.approx(sum(arm["recall"] for arm in arms) / 2)
        assert all("points" not in arm for arm in arms)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").iterdir()}
    assert len(written) == 24
    # Another number of directions makes the arms of one distance anew, and leaves the others.
    again = json.loads(toy(config(*TINY, "loss.sliced.directions=9", f"out={tmp_path}"))["results.json"].read_text())
    assert len(list((tmp_path / "arms").iterdir())) == 24 + 4
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for before, after in zip(content["arms"], again["arms"], strict=True):
        assert (before == after) == (before["distance"] != "sliced")


def test_settings_of_arms_cover_the_configuration(default):
    others = {"experiment", "out", "distances", "batches", "seeds", "scales", "loss", "published", "agreement"}
    assert set(default) == {*SETTINGS, *others}


def test_the_published_numbers_are_those_of_the_facts(default):
    assert published_scores(default.published, "frechet", 8) == {"recall": 0.30, "median_distance": 0.378}
    assert published_scores(default.published, "drift", 128) == {"recall": 0.0, "median_distance": 0.53}
    assert published_scores(default.published, "mmd_nystrom", 128) == {"recall": 1.0, "median_distance": 0.028}
    assert published_scores(default.published, "drift", 64) is None


def test_agreement_is_said_for_each_score():
    compared = {
        "published": {
            "batches": [8],
            "data": {"median_distance": 0.033},
            "recall": {"drift": [0.9], "sliced": [0.9], "frechet": [0.1]},
            "median_distance": {"drift": [0.1], "sliced": [0.1], "frechet": [0.1]},
        },
        "agreement": {"recall": 0.05, "median_distance": 0.2},
    }
    found = {"drift": (0.94, 0.115), "sliced": (0.94, 0.125), "frechet": (0.2, 0.07)}
    rows = [
        {"distance": name, "batch": batch, "seed": 0, "recall": recall, "median_distance": away}
        for name, (recall, away) in found.items()
        for batch in (8, 9)
    ]
    lines = table(summarise(rows, compared), {"recall": 1.0, "median_distance": 0.034}, compared).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:8]] == ["yes |", " |", "recall only |", " |", "no |", " |"]
    assert lines[-1].startswith("1 of 3 agree in both scores")


# Bad input


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("distances", ["mmd_nystroem"], ["distances=", "did you mean mmd_nystrom"]),
        ("distances", [], ["distances=[]"]),
        ("seeds", [1, 1], ["seeds=[1, 1]", "each value once"]),
        ("batches", [1, 8], ["batches=[1, 8]", "2 to 60"]),
        ("batches", [8, 61], ["batches=[8, 61]", "data.points"]),
        ("dimension", 1, ["dimension=1", "at least 2"]),
        ("steps", 0, ["steps=0"]),
        ("clip", 0, ["clip=0"]),
        ("last_rate", 2, ["last_rate=2"]),
        ("loss.drift.positives", 61, ["loss.drift.positives=61", "1 to 60"]),
        ("loss.mmd_nystrom.landmarks", 61, ["loss.mmd_nystrom.landmarks=61", "1 to 60"]),
        ("loss.mmd_nystrom", {"scales": [50], "landmarks": 60, "jitter": 0}, ["loss.mmd_nystrom.jitter=0", "larger"]),
        ("loss.drift.temperatures", [0.0], ["loss.drift", "temperatures=[0.0]"]),
        ("evaluation.shown", 51, ["evaluation.shown=51", "50"]),
        ("published.recall.drift", [1.0], ["published.recall.drift=[1.0]", "give 3"]),
        ("network.depth", 1, ["network", "depth 1"]),
        ("optimizer.lr", -1, ["optimizer", "learning rate", "-1"]),
        ("out", "/proc/nowhere", ["out=/proc/nowhere"]),
    ],
)
def test_bad_numbers_are_named_before_any_work(tiny, tmp_path, key, value, words):
    refuses_before_any_work(tiny, tmp_path, key, value, words)


def test_points_that_are_not_finite_end_the_study(tiny, tmp_path):
    cfg = OmegaConf.merge(tiny, {"out": str(tmp_path), "optimizer": {"lr": 1e30}, "distances": ["mmd_exact"]})
    with pytest.raises(Diverged, match=r"mmd_exact-B4-seed0.*optimizer\.lr"):
        toy(cfg)
    assert list((tmp_path / "arms").iterdir()) == []
