"""EDM's augmentation: its matrices, exact identity, keyed draws, how the network is told, runs that sample without."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from common import given_to_the_objective
from shrunk import BACKBONE, RUN

from pmf_lightning import Batch, UserError, build, compose
from pmf_lightning.data.augment import EDMAugment, Geometry
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.data.transforms import to_float
from pmf_lightning.models.vit import init_weights
from pmf_lightning.pipeline.checkpoints import load_checkpoint
from pmf_lightning.pipeline.parts import make_objective
from pmf_lightning.sampling.generate import numbered_images
from pmf_lightning.train import train
from pmf_lightning.training.prepare import check_inputs
from pmf_lightning.utils import rng
from pmf_lightning.utils.rng import BatchRows

SIDE = 16
NAMES = ("mirror", "overturn", "scale", "angle", "axis", "stretch")
EDM = EDMAugment(p=0.12, x_flip=1.0, scale=0.2, stretch=0.2, turned_axes=0.5, shift=0.125)


def geometry(shift=(0.0, 0.0), **values):
    numbers = {name: torch.tensor([values.get(name, 0.0)], dtype=torch.float64) for name in NAMES}
    return Geometry(**numbers, shift=torch.tensor([shift], dtype=torch.float64))


def pictures(n=1, channels=1):
    """Smooth images in [-1, 1]."""
    values = (rng.uniform("augment", count=n * channels * 16) * 2 - 1).float().view(n, channels, 4, 4)
    return torch.nn.functional.interpolate(values, (SIDE, SIDE), mode="bilinear")


def test_zero_is_the_image_as_it_is():
    images = pictures(5, 3)
    found, vectors = replace(EDM, p=0, x_flip=0)(images, torch.arange(5), 0, 0)
    assert torch.equal(found, images)
    assert torch.equal(vectors, torch.zeros(5, 9))
    assert torch.equal(EDM.apply(images[:1], geometry()), images[:1])
    assert torch.equal(geometry().vector, torch.zeros(1, 9))


def of_edm(scale, angle, axis, stretch, shift):
    """Where a pixel was, by table 6 and the official code: matrices of pixels around the centre, in numpy."""

    def turn(t):
        return np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]])

    s, a = 2 ** (0.2 * scale), 2 ** (0.2 * stretch)
    moved = np.array([[1, 0, shift[0] * SIDE * 0.125], [0, 1, shift[1] * SIDE * 0.125], [0, 0, 1]])
    there = moved @ turn(axis).T @ np.diag([a, 1 / a, 1]) @ turn(axis) @ turn(-angle) @ np.diag([s, s, 1])
    return np.linalg.inv(there)


@pytest.mark.parametrize(
    "values",
    [
        {"scale": 1.5},
        {"angle": 0.7},
        {"stretch": -1.2, "axis": 2.0},
        {"shift": (0.5, -1.0)},
        {"scale": -1.0, "angle": -2.0, "stretch": 0.8, "axis": 0.4, "shift": (-0.3, 0.6)},
    ],
)
def test_matrices_and_vectors_are_those_of_edm(values):
    chosen = {"scale": 0.0, "angle": 0.0, "stretch": 0.0, "axis": 0.0, "shift": (0.0, 0.0)} | values
    pixels = np.diag([SIDE / 2, SIDE / 2, 1])  # sides at +-1 to pixels around the centre
    wanted = np.linalg.inv(pixels) @ of_edm(**chosen) @ pixels
    np.testing.assert_allclose(EDM.inverse(geometry(**chosen))[0].numpy(), wanted, atol=1e-12)
    a2, a3, a4, a5 = (chosen[name] for name in ("scale", "angle", "axis", "stretch"))
    told = [0, 0, a2, math.cos(a3) - 1, math.sin(a3), a5 * math.cos(a4), a5 * math.sin(a4), *chosen["shift"]]
    np.testing.assert_allclose(geometry(**chosen).vector[0].numpy(), told, atol=1e-6)


def test_hand_made_cases():
    x = pictures()
    turned = EDM.apply(x, geometry(angle=math.pi / 2))
    torch.testing.assert_close(turned, x.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    moved = EDM.apply(x, geometry(shift=(1.0, 0.0)))  # two pixels of 16 to the right
    torch.testing.assert_close(moved[..., 2:], x[..., :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., :2], x[..., :2].flip(-1), atol=1e-5, rtol=0)  # goes on as its mirror image
    assert torch.equal(EDM.apply(x, geometry(mirror=1.0)), x.flip(-1))
    assert torch.equal(EDM.apply(x, geometry(overturn=1.0)), x.flip(-2))
    doubled = replace(EDM, scale=1.0).apply(x, geometry(scale=1.0))
    assert (
        doubled[..., 4:12, 4:12] - x[..., 6:10, 6:10].repeat_interleave(2, 2).repeat_interleave(2, 3)
    ).abs().max() < 0.3
    assert EDM.apply(x * 9 / x.abs().max(), geometry(angle=0.3)).abs().max() <= 1


def test_half_precision_of_a_run_does_not_reach_it():
    x, turn = pictures(2, 3), geometry(angle=0.7, shift=(0.3, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EDM.apply(x[:1], turn), half := EDM.apply(x[:1], turn))
    assert torch.equal(half, EDM.apply(x[:1], turn))


def test_each_transformation_has_its_probability():
    drawn, count = EDM.draw(torch.arange(4000), 0, 0), 4000
    for name in ("scale", "angle", "stretch", "shift"):
        share = (getattr(drawn, name).view(count, -1)[:, 0] != 0).sum() / count
        assert abs(share - 0.12) < 0.02, name
    assert abs(drawn.mirror.mean() - 0.5) < 0.03
    assert abs(drawn.overturn.mean() - 0.06) < 0.015
    stretched = drawn.stretch != 0
    assert abs((drawn.axis[stretched] != 0).double().mean() - 0.5) < 0.1
    assert not drawn.axis[~stretched].any()
    for name, std in (("scale", 1.0), ("angle", math.pi / 3**0.5), ("stretch", 1.0)):
        values = getattr(drawn, name)
        assert abs(values[values != 0].std() - std) < 0.12 * std, name
    both = (drawn.scale != 0) & (drawn.angle != 0)
    assert 25 < both.sum() < 95  # independent: 58


def test_rows_have_the_same_numbers_however_they_are_dealt():
    images, every = pictures(20, 3), replace(EDM, p=0.9)
    whole, vectors = every(images, torch.arange(20), 3, 7)
    for index in range(4):
        rows = BatchRows(index, 4).rows(5)
        found, told = every(images[rows], rows, 3, 7)
        assert torch.equal(found, whole[rows])
        assert torch.equal(told, vectors[rows])
    for seed, step in ((4, 7), (3, 8)):
        assert not torch.equal(every(images, torch.arange(20), seed, step)[1], vectors)
    before = torch.random.get_rng_state()
    every(images, torch.arange(20), 3, 7)
    assert torch.equal(torch.random.get_rng_state(), before)


def filled(overrides):
    """A module whose weights are all random, those of the augmentation too."""
    module = build(compose(overrides))
    init_weights(module.network, lambda name: rng.generator("augment", name))
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            weight.add_(rng.normal("augment", name, count=weight.numel()).view(weight.shape).float() * 0.05)
    return module


def test_a_step_tells_the_network_how_images_were_moved(monkeypatch):
    module = build(compose(["model=pmf_tiny", "augment=edm", "augment.p=0.5", "seed=2", *BACKBONE]))
    give = given_to_the_objective(module, 5, 1, monkeypatch)
    levels = (torch.arange(8 * 32 * 32) % 251).view(8, 1, 32, 32).to(torch.uint8)
    batch = give([levels, torch.arange(8)], 0)
    x, vectors = replace(EDM, p=0.5)(to_float(levels), torch.arange(8), 2, 5)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.conditions["augment"], vectors)


def test_every_pass_of_the_loss_has_the_vector_of_its_row():
    """A vector that all rows share is the same as other positions, so losses by row are known without it."""
    module = filled(["model=pmf_tiny", "augment=edm", *BACKBONE])
    network, size = module.network, 8
    x = rng.normal_images("augment", rows=torch.arange(size), shape=(1, 32, 32))
    vectors = rng.normal("augment", "vectors", count=18).view(2, 9).float()
    y, even = torch.arange(size), torch.arange(size) % 2 == 0
    draws = module.objective.draw(Batch(x, y), 0, 0)

    def losses(vectors):
        conditions = {} if vectors is None else {"augment": vectors}
        found = module.objective(network, Batch(x, y, conditions), draws)
        return torch.stack([*found.per_sample.values(), *found.diagnostics.values()])

    mixed = losses(torch.where(even[:, None], *vectors))
    for vector, rows in zip(vectors, (even, ~even), strict=True):
        shift = network.augment(vector[None])[0].detach()
        network.positions.weight.data += shift
        torch.testing.assert_close(mixed[:, rows], losses(None)[:, rows], rtol=1e-3, atol=1e-3)
        network.positions.weight.data -= shift
    assert not torch.allclose(mixed, losses(None), rtol=0.01)


@pytest.mark.parametrize("model", ["pmf_tiny", "jit_tiny"])
def test_vector_zero_is_no_vector(model):
    network = filled([f"model={model}", "augment=edm", *BACKBONE[:4]]).network
    like = torch.ones(2)
    conditions = {name: like * 0.5 for name in ("t", "h", "omega", "t_min", "t_max")} | {"label": like.long()}
    x = pictures(2)
    x = torch.nn.functional.interpolate(x, (network.resolution,) * 2)

    def answer(**more):
        return network(x, conditions | more)["u"]

    assert torch.equal(answer(augment=torch.zeros(2, 9)), answer())
    assert not torch.allclose(answer(augment=torch.ones(2, 9)), answer())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["jit_tiny", "pmf_digits", "imf_digits"])
def test_a_network_without_it_is_unchanged(model):
    plain, told = (build(compose([f"model={model}", *more])).network.state_dict() for more in ([], ["augment=edm"]))
    assert told.keys() - plain.keys() == {"augment.weight"}
    assert not told["augment.weight"].any()
    assert all(torch.equal(told[name], value) for name, value in plain.items())


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match=r"augment=edm: the loss of drifting_tiny does not tell .*; leave augment= out"):
        build(compose(["model=drifting_tiny", "augment=edm"]))
    with pytest.raises(UserError, match=r"augment\.p=2: give .* from 0 to 1"):
        compose(["augment=edm", "augment.p=2"])
    with pytest.raises(ValueError, match=r"x_flip=-1: give a probability"):
        replace(EDM, x_flip=-1)


@pytest.mark.slow
def test_latents_are_refused():
    latents = type("Latents", (Shapes,), {"latents": True})("some_latents", 16, 3, 10, 40, 10)
    cfg = compose(["data=imagenet256_latents", "model=imf_b2", "augment=edm"])
    with pytest.raises(UserError, match=r"augment=edm: some_latents provides latents"):
        check_inputs(cfg, latents, make_objective(cfg))


def test_the_preset_has_the_values_of_the_paper():
    cfg = compose(["augment=edm"])
    values = {name: cfg.augment[name] for name in (field.name for field in fields(EDM))}
    assert values == {name: getattr(EDM, name) for name in values}
    assert cfg.backbone.augment == EDMAugment.parameters


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_tiny", "imf_digits", "jit_tiny"])
def test_a_run_augments_resumes_and_samples_without(model, tmp_path):
    left_out = ("model=", *(["backbone."] if model == "jit_tiny" else []))
    base = [*(option for option in RUN if not option.startswith(left_out)), f"model={model}"]
    base += ["augment=edm", "augment.p=0.5", "batch=8", "sample_grid.enabled=false", "checkpoint.every_images=16"]
    train(compose([*base, "steps=4", f"run_dir={tmp_path / 'whole'}"]))
    train(compose([*base, "steps=2", f"run_dir={tmp_path / 'parts'}"]))
    train(compose([*base, "steps=4", f"run_dir={tmp_path / 'parts'}", f"ckpt={tmp_path / 'parts'}"]))
    whole, parts = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    state = whole.network.state_dict()
    assert all(torch.equal(value, parts.network.state_dict()[name]) for name, value in state.items())
    assert state["augment.weight"].any()
    images = numbered_images(whole, torch.arange(2), 0, 0, steps=1)
    with torch.no_grad():
        whole.network.augment.weight.zero_()
    assert torch.equal(images, numbered_images(whole, torch.arange(2), 0, 0, steps=1))
