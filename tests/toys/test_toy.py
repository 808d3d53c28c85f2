"""The toys: their data and measures against closed forms, tiny runs through the command, and bad input."""

import json
import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from common import Oracle, objective
from omegaconf import OmegaConf
from PIL import Image
from shrunk import RUN

from pmf_lightning import Batch, JiT, UserError, compose, generate, image_noise, load_checkpoint
from pmf_lightning.config.compose import CONF, choices
from pmf_lightning.models.mlp import MLP
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions
from pmf_lightning.sampling import ode
from pmf_lightning.toy import TOYS, main, toy
from pmf_lightning.toys.fields import guidance_options, noise_content
from pmf_lightning.toys.manifold import SETTINGS, ManifoldRun, build, clipped_quantity
from pmf_lightning.toys.manifold_report import table
from pmf_lightning.toys.result_cache import ResultCache
from pmf_lightning.toys.swiss_roll import (
    exact_image,
    lift,
    nearest,
    project,
    random_plane,
    roll_images,
    sliced_distance,
    swiss_roll,
    velocity_error,
)
from pmf_lightning.train import train
from pmf_lightning.utils import rng

TINY = ["dimensions=[2,5]", "seeds=[0,1]", "steps=2", "batch=16", "network.width=8", "network.depth=3"]
TINY += ["evaluation.points=50", "evaluation.shown=20", "evaluation.batches=1"]


def mlp(dimension=5, dtype=torch.float64, **changes):
    sizes = {"width": 12, "depth": 4, "scalars": ["t", "h"], "heads": ["u"], "resolution": 1}
    network = MLP(channels=dimension, **{**sizes, **changes})
    init_weights(network, lambda name: rng.generator("tests", name))
    return network.to(dtype)


def flow(**changes):
    return objective(omega_max=1.0, label_dropout=0.0, v_source="boundary", weight_power=0.0, **changes)


def roll_batch(dimension, count=64):
    x = roll_images(0, "test", 0, count, 2.0, random_plane(dimension, 0)).double()
    return Batch(x, torch.zeros(count, dtype=torch.long))


# Data


def test_the_roll_is_an_archimedean_spiral():
    points = swiss_roll(torch.linspace(0, 1, 1001, dtype=torch.float64), 2.0)
    radius = points.norm(dim=1)
    assert torch.allclose(radius, torch.linspace(2 / 3, 2, 1001, dtype=torch.float64))  # radius grows with the angle
    turned = torch.atan2(points[:, 1], points[:, 0]).diff().remainder(2 * math.pi)
    assert torch.allclose(turned, torch.full((1000,), 3 * math.pi / 1000, dtype=torch.float64))
    assert torch.allclose(points.square().mean(), torch.tensor(1.0).double(), atol=0.05)


@pytest.mark.parametrize("dimension", [2, 8, 512])
def test_planes_are_orthonormal_and_keyed(dimension):
    plane = random_plane(dimension, 0)
    assert plane.shape == (dimension, 2)
    assert torch.allclose(plane.T @ plane, torch.eye(2), atol=1e-6)
    assert torch.equal(plane, random_plane(dimension, 0))
    assert not torch.allclose(plane, random_plane(dimension, 1))
    points = torch.randn(7, 2, generator=rng.generator("tests"))
    back, off = project(lift(points, plane), plane)
    assert torch.allclose(back, points, atol=1e-5)
    assert off.max() < 1e-5


def test_the_plane_of_one_dimension_is_refused():
    with pytest.raises(ValueError, match="dimension=1"):
        random_plane(1, 0)


def test_distance_from_the_plane_is_what_sticks_out():
    plane = random_plane(6, 0).double()
    out = torch.linalg.qr(torch.cat((plane, torch.eye(6).double()), 1))[0][:, 2]  # a unit vector across the plane
    points, off = project((3 * out)[None, :, None, None], plane)
    assert points.abs().max() < 1e-12
    assert torch.allclose(off, torch.tensor([3.0]).double())


def test_exact_image_of_two_points_is_their_logistic_mean():
    plane, data = random_plane(4, 0).double(), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    z = rng.normal("tests", "z", count=20).reshape(5, 4, 1, 1)
    t, scale = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0]).double(), 0.7
    place = project(z, plane)[0][:, 0]
    expected = torch.tanh((1 - t) * place / (t * scale) ** 2)
    points, off = project(exact_image(z, t, scale, data, plane), plane)
    assert torch.allclose(points[:, 0], expected)
    assert points[:, 1].abs().max() < 1e-7  # planes are orthonormal in float32
    assert off.max() < 1e-7


# Measures


def test_sliced_distance():
    a, b = (rng.normal("tests", name, count=400).reshape(200, 2) for name in "ab")
    assert sliced_distance(a, a.flip(0), 0, 16) < 1e-15  # the order of points does not matter
    shift = torch.tensor([0.3, -2.0]).double()
    along = sliced_directions(2, 16, 0)
    assert sliced_distance(a, a + shift, 0, 16) == pytest.approx((shift @ along).abs().mean().item())
    assert 0 < sliced_distance(a, b, 0, 16) == pytest.approx(sliced_distance(b, a, 0, 16))


def test_nearest_is_how_far_points_stick_out():
    data = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert nearest(torch.tensor([[0.0, 1.0], [3.0, -2.0], [3.0, 0.0]]), data) == 1
    assert nearest(data[:1], data) == 0  # one side only: a part of the data is near


def test_noise_content_knows_noise_from_smoothness():
    noise = rng.normal_images("tests", rows=torch.arange(64), shape=(3, 16, 16))
    assert noise_content(noise).mean() == pytest.approx(1, abs=0.03)
    ramp = torch.arange(16.0) / 16
    wave = torch.cos(2 * math.pi * ramp).expand(1, 1, 16, 16)
    assert noise_content(wave).item() == pytest.approx(0, abs=1e-10)
    assert noise_content(torch.ones(1, 1, 16, 16)).item() == 0
    # Half of the energy in a wave of four pixels, the other half smooth: half, divided by white noise's share.
    both = wave + torch.cos(2 * math.pi * 4 * ramp)[:, None]
    fine = 1 - (7 * 7 - 1) / 255
    assert noise_content(both).item() == pytest.approx(0.5 / fine)
    assert noise_content(5 * both + 3).item() == pytest.approx(0.5 / fine)  # neither scale nor mean matters


def test_paths_follow_the_exact_solution_to_second_order():
    z = torch.tensor([1.0, -2.0]).double().view(2, 1, 1, 1)

    def error(steps):
        path = ode.path(lambda z, t: 2 * t * z, z, [1.0, 0.5, 0.0], steps)  # z(t) = z(1) exp(t^2 - 1)
        assert len(path) == 3
        assert path[0] is z
        return (path[2] - z * math.exp(-1)).abs().max().item(), (path[1] - z * math.exp(-0.75)).abs().max().item()

    coarse, fine = error(10), error(20)
    assert all(3.5 < a / b < 4.5 for a, b in zip(coarse, fine, strict=True))


# The network in the objective


@pytest.mark.parametrize(("name", "depth", "scalars"), [("manifold", 7, 2), ("manifold_jit", 5, 1)])
def test_the_network_has_the_layers_of_the_paper(name, depth, scalars):
    network = build(compose([f"toys={name}"], "toy"), ManifoldRun(512, "x", 0))[0]
    layers = [*network.hidden, network.heads["u"]]
    assert len(layers) == depth
    assert [layer.out_features for layer in layers] == [256] * (depth - 1) + [512]
    assert layers[0].in_features == 512 + scalars
    with pytest.raises(ValueError, match="depth 1"):
        mlp(depth=1)


def test_the_network_reads_its_scalars_and_nothing_else():
    network, z = mlp(resolution=2, heads=["u", "v"]), rng.normal("tests", count=60).reshape(3, 5, 2, 2)
    t, h = rng.uniform("tests", "t", count=3), rng.uniform("tests", "h", count=3)
    fields = network(z, {"t": t, "h": h, "label": torch.zeros(3)})
    assert fields.keys() == {"u", "v"}
    assert fields["u"].shape == z.shape
    assert network(z, {"t": t, "h": h}, heads=("v",)).keys() == {"v"}
    assert torch.equal(network(z, {"t": t, "h": h})["u"], fields["u"])
    for name in "th":
        other = {"t": t, "h": h} | {name: torch.full_like(t, 0.5)}
        assert (network(z, other)["u"] - fields["u"]).flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("prediction", ["x", "u"])
def test_one_pass_equals_two_passes_through_the_objective(prediction):
    network, batch, found = mlp(), roll_batch(5), []
    for form in ("one_pass", "two_pass"):
        meanflow = flow(prediction=prediction, jvp=form)
        losses = meanflow(network, batch, meanflow.draw(batch, 0, 0))
        assert losses.per_sample.keys() == {"loss_u"}
        gradients = torch.autograd.grad(losses.total, list(network.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0].norm() > 0
        found.append(torch.cat([losses.per_sample["loss_u"], *(gradient.flatten() for gradient in gradients)]))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


def test_the_true_image_has_zero_loss_in_any_dimension():
    batch, meanflow = roll_batch(5), flow(prediction="x", jvp="two_pass", flow_matching_fraction=1.0)
    on = meanflow.draw(batch, 0, 0)
    z = (1 - on.t).view(-1, 1, 1, 1) * batch.x + on.t.view(-1, 1, 1, 1) * on.noise
    losses = meanflow(Oracle(z, batch.x, classes=0), batch, on)
    assert losses.per_sample["loss_u"].max() < 1e-12


WIDE = {"noise_scale": 0.7, "P_mean": 0.0, "P_std": 2.5, "t_clip": 0.1}  # many times inside the clips, at both ends
EXACT = {
    "jit-x": (JiT("x", "v", label_dropout=0.0, **WIDE), "x"),
    "jit-eps": (JiT("eps", "v", label_dropout=0.0, **WIDE), "eps"),
    "jit-v": (JiT("v", "v", label_dropout=0.0, **WIDE), "v"),
    "meanflow-clipped": (flow(prediction="x", v_target="clipped", flow_matching_fraction=1.0, **WIDE), "x"),
    "meanflow-plain": (flow(prediction="u", v_target="plain", flow_matching_fraction=1.0, **WIDE), "v"),
}


@pytest.mark.parametrize(("objective", "predicted"), EXACT.values(), ids=list(EXACT))
def test_the_mean_image_leaves_what_z_does_not_determine(objective, predicted):
    batch, plane = roll_batch(5), random_plane(5, 0).double()
    data = swiss_roll(rng.uniform("tests", count=500), 2.0)
    on = objective.draw(batch, 0, 0)
    assert on.t.min() < 0.1
    assert on.t.max() > 0.9
    t = on.t.view(-1, 1, 1, 1)
    z = (1 - t) * batch.x + t * on.noise
    best = exact_image(z, on.t, objective.noise_scale, data, plane)
    answers = {"x": best, "eps": (z - (1 - t) * best) / t, "v": (z - best) / t}
    (loss,) = objective(Oracle(z, answers[predicted], classes=0), batch, on).per_sample.values()
    error = velocity_error(best - batch.x, on.t, clipped_quantity(objective), objective.t_clip)
    assert torch.allclose(error.square().flatten(1).sum(1), loss, rtol=1e-9, atol=1e-12)


def test_images_of_one_pixel_are_sampled_like_others():
    network = mlp(dtype=torch.float32)
    noise = image_noise(0, 0, 4, (5, 1, 1))
    labels = torch.zeros(4, dtype=torch.long)
    one = {"t": torch.ones(4), "h": torch.ones(4)}
    images = generate(network, noise, labels, objective=flow(prediction="x"))
    assert torch.allclose(images, network(noise, one)["u"], atol=1e-6)


# Runs


@pytest.fixture
def call(call_command):
    """Call the command in an empty folder; return (exit status, stdout, stderr)."""
    return partial(call_command, main)


def numbers(folder):
    content = json.loads((folder / "results.json").read_text())
    return [{k: v for k, v in arm.items() if k != "train_seconds"} for arm in content["arms"]]


@pytest.mark.slow
def test_manifold_writes_everything_and_caches_finished_arms(call, tmp_path):
    status, output, errors = call("experiment=manifold", *TINY, "out=first")
    assert status == 0, errors
    assert "| 5 | u |" in output
    assert "first/figure.png" in output
    first = tmp_path / "first"
    assert min(Image.open(first / "figure.png").size) > 400
    assert len((first / "arms.csv").read_text().splitlines()) == 1 + 8
    summary = json.loads((first / "results.json").read_text())["summary"]
    assert [(line["dimension"], line["prediction"]) for line in summary] == [(2, "x"), (2, "u"), (5, "x"), (5, "u")]
    for line in summary:
        values = [arm["v_loss"] for arm in numbers(first) if arm["dimension"] == line["dimension"]]
        assert min(values) <= line["v_loss"] <= max(values)
        assert line["v_loss_exact"] < line["v_loss"]
        assert line["distance_floor"] < min(line["distance"], line["distance_noise"])
        assert 0 < line["off_roll_noise"] < 1
        assert (line["off_plane"] > 1e-3) == (line["dimension"] > 2)

    written = {path: path.stat().st_mtime_ns for path in (first / "arms").iterdir()}
    status, output, _ = call("experiment=manifold", *TINY, "dimensions=[2,3]", "predictions=[x]", "out=first")
    assert status == 0
    assert "2 of 4 arms are finished" in output
    assert len(list((first / "arms").iterdir())) == 8 + 2
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_manifold_jit_compares_three_predictions(call, tmp_path):
    status, output, errors = call("experiment=manifold_jit", *TINY, "seeds=[0]", "evaluation.steps=2", "out=here")
    assert status == 0, errors
    summary = json.loads((tmp_path / "here" / "results.json").read_text())["summary"]
    assert [(line["dimension"], line["prediction"]) for line in summary] == [*product((2, 5), ("x", "eps", "v"))]
    assert all(line["v_loss_exact"] < line["v_loss"] for line in summary)
    assert len({line["v_loss"] for line in summary}) == 6
    assert (tmp_path / "here" / "table.md").read_text() in output
    assert min(Image.open(tmp_path / "here" / "figure.png").size) > 400

    summary[1]["v_loss_exact"] = 0.5  # a clip that counts for one prediction alone
    same = f"{summary[0]['v_loss_exact']:.4f}"
    assert f"| 2 | (exact velocity, real points) | {same} / 0.5000 |" in table(summary)


def test_the_sampler_is_the_configured_one(tmp_path):
    found = {}
    for sampler in ("heun", "euler"):
        tiny = [*TINY, "dimensions=[5]", "predictions=[x]", "seeds=[0]", "evaluation.steps=3"]
        toy(compose(["toys=manifold_jit", *tiny, f"evaluation.sampler={sampler}", f"out={tmp_path / sampler}"], "toy"))
        found[sampler] = numbers(tmp_path / sampler)[0]
    assert found["heun"]["v_loss"] == found["euler"]["v_loss"]
    assert found["heun"]["distance"] != found["euler"]["distance"]


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name, seeds in (("a", "[0,1]"), ("b", "[1,0]")):
        tiny = [*TINY, "dimensions=[5]", "predictions=[x]", f"seeds={seeds}"]
        toy(compose(["toys=manifold", *tiny, f"out={tmp_path / name}"], "toy"))
    a, b = numbers(tmp_path / "a"), numbers(tmp_path / "b")
    assert a == b
    assert a[0]["v_loss"] != a[1]["v_loss"]


def test_an_arm_that_fails_leaves_nothing(tmp_path):
    arms = ResultCache(tmp_path)
    with pytest.raises(ZeroDivisionError):
        arms.run("a", {"steps": 1}, lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    assert arms.run("a", {"steps": 1}, lambda: {"loss": 1}) == {"loss": 1}
    assert arms.run("a", {"steps": 1}, lambda: 1 / 0) == {"loss": 1}
    assert arms.finished("a", {"steps": 2}) is None  # other settings: another arm


@pytest.mark.parametrize("name", choices("toys"))
def test_every_toy_composes_and_says_its_command(name):
    assert compose([f"toys={name}"], "toy").experiment == name
    assert name in TOYS
    header = (CONF / "toys" / f"{name}.yaml").read_text().splitlines()[:3]
    assert any(f"python -m pmf_lightning.toy experiment={name}" in line for line in header)


@pytest.mark.parametrize("name", ["manifold", "manifold_jit"])
def test_settings_of_arms_cover_the_configuration(name):
    """Whatever may change an arm's numbers is in its key; what is not is listed here."""
    cfg = compose([f"toys={name}"], "toy")
    others = {"experiment", "out", "dimensions", "predictions", "seeds"}
    unused = {"conditions", "features"}  # of image models
    assert set(cfg) - unused == {*SETTINGS, *others}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*RUN, "steps=2", f"run_dir={folder}"]))
    return folder


@pytest.mark.slow
def test_fields_draws_and_measures(call, trained, tmp_path):
    small = ["n=3", "shown=1", "path_times=[0,0.5,1]", "heun_steps=2"]
    status, output, errors = call("experiment=fields", f"ckpt={trained}", *small, "out=here")
    assert status == 0, errors
    assert "here/figure.png" in output
    assert min(Image.open(tmp_path / "here" / "figure.png").size) > 300
    measured = json.loads((tmp_path / "here" / "results.json").read_text())
    places = {(pair["r"], pair["t"]): pair for pair in measured["pairs"]}
    assert places.keys() == {(0, 0.5), (0.5, 0.5), (0, 1), (0.5, 1), (1, 1)}
    assert measured["noise_content_z"]["1.0"] == pytest.approx(1, abs=0.1)
    for (r, t), pair in places.items():
        assert set(pair["noise_content"]) == {"u", "u_path", "x", "x_path"}
        assert all(np.isfinite(value) for value in pair["noise_content"].values())
        assert (pair["u_error"] == 0) == (r == t)


# Bad input


def test_help_names_the_experiments(call):
    status, output, _ = call("--help")
    assert status == 0
    for name in TOYS:
        assert f"experiment={name}" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiment=manifolds"], ["experiment=manifolds", "did you mean manifold"]),
        (["experiment=smoke"], ["experiment=smoke", "manifold"]),
        (["steps=0"], ["steps=0"]),
        (["lr=3"], ["lr"]),
        (["experiment=fields"], ["ckpt is not set", "run directory"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(call, arguments, words):
    status, _, errors = call(*arguments)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    assert "step/s" not in errors, "work had begun"
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def configs():
    return {name: compose([f"toys={name}"], "toy") for name in TOYS}


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("manifold", "dimensions", [1, 2], ["dimensions=[1, 2]", "at least 2"]),
        ("manifold", "dimensions", [2, 2], ["dimensions=[2, 2]", "each value once"]),
        ("manifold", "predictions", [], ["predictions=[]"]),
        ("manifold", "predictions", ["x", "y"], ["objective", "prediction=y"]),
        ("manifold", "batch", 0, ["batch=0"]),
        ("manifold", "evaluation.points", 0, ["evaluation.points=0"]),
        ("manifold", "evaluation.shown", 6000, ["evaluation.shown=6000", "5000"]),
        ("manifold", "evaluation.loss", "loss_v", ["evaluation.loss=loss_v", "loss_u"]),
        ("manifold_jit", "predictions", ["x", "u"], ["objective", "prediction=u", "x, eps, v"]),
        ("manifold_jit", "evaluation.sampler", "average", ["evaluation.sampler=average", "heun, euler"]),
        ("manifold", "network.depth", 1, ["network", "depth 1"]),
        ("manifold", "optimizer.lr", -1, ["optimizer", "learning rate", "-1"]),
        ("manifold", "out", "/proc/nowhere", ["out=/proc/nowhere"]),
        ("fields", "ckpt", "nowhere", ["ckpt=nowhere", "no such file"]),
        ("fields", "path_times", [0, 0.5], ["path_times=[0, 0.5]", "both included"]),
        ("fields", "path_times", [], ["path_times=[]"]),
        ("fields", "shown", 32, ["shown=32", "0 to 31"]),
        ("fields", "heun_steps", 0, ["heun_steps=0"]),
        ("fields", "device", "toaster", ["device=toaster"]),
        ("fields", "out", "/proc/nowhere", ["out=/proc/nowhere"]),
    ],
)
def test_bad_numbers_are_named(configs, tmp_path, name, key, value, words):
    cfg = OmegaConf.merge(configs[name], {"out": str(tmp_path)}, {"ckpt": "."} if name == "fields" else {})
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError) as caught:
        toy(cfg)
    for word in words:
        assert word in str(caught.value)


def test_fields_of_latents_are_refused(trained):
    module = load_checkpoint(trained)
    module.decoder = torch.nn.Identity()
    with pytest.raises(UserError, match="latents"):
        guidance_options(compose(["toys=fields", f"ckpt={trained}"], "toy"), module)


def test_guidance_below_one_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"omega=0\.5"):
        toy(compose(["toys=fields", f"ckpt={trained}", "omega=0.5", f"out={tmp_path}"], "toy"))
