"""Mirrored images: half of them, by key alone, the same for any number of devices and micro-batches."""

import pytest
import torch
from common import given_to_the_objective
from shrunk import BACKBONE, RUN

from pmf_lightning import UserError, build, compose
from pmf_lightning.config.compose import choices
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.data.transforms import preprocess_pixels, to_float
from pmf_lightning.pipeline.parts import make_objective
from pmf_lightning.train import train
from pmf_lightning.training.prepare import check_inputs
from pmf_lightning.utils import rng
from pmf_lightning.utils.rng import BatchRows


def numbered(*leading):
    """Images [*leading, 1, 2, 4], no two alike and none its own mirror image."""
    count = torch.Size(leading).numel()
    assert count * 8 <= 256 * 8
    return torch.arange(count * 8).view(*leading, 1, 2, 4).remainder(251).to(torch.uint8)


def turned(seen, images):
    """Which images were mirrored; the others are as they were."""
    mirrored, same = ((seen == to_float(other)).flatten(-3).all(-1) for other in (images.flip(-1), images))
    assert (mirrored ^ same).all()
    return mirrored


def test_half_of_the_images_are_mirrored_by_key():
    images, rows = numbered(250), torch.arange(250)
    found = turned(preprocess_pixels(images, True, rows, 3, 7), images)
    expected = torch.cat([rng.uniform(3, "flip", 7, row, count=1) for row in range(250)]) < 0.5
    assert torch.equal(found, expected)
    assert 90 < found.sum() < 160
    for seed, step in ((4, 7), (3, 8)):
        assert not torch.equal(turned(preprocess_pixels(images, True, rows, seed, step), images), found)
    assert torch.equal(preprocess_pixels(images, False, rows, 3, 7), to_float(images))


@pytest.mark.parametrize("count", [2, 5])
def test_rows_are_the_same_however_they_are_dealt(count):
    images = numbered(20)
    whole = preprocess_pixels(images, True, torch.arange(20), 0, 1)
    for index in range(count):
        rows = BatchRows(index, count).rows(20 // count)
        assert torch.equal(preprocess_pixels(images[rows], True, rows, 0, 1), whole[rows])


def test_every_positive_and_negative_has_a_coin_of_its_own():
    images, rows = numbered(12, 16), torch.arange(12)
    found = {
        role: turned(preprocess_pixels(images, True, rows, 0, 1, role), images) for role in ("positives", "negatives")
    }
    for role, mirrored in found.items():
        assert 60 < mirrored.sum() < 132
        for row in range(12):
            assert torch.equal(mirrored[row], rng.uniform(0, "flip", role, 1, row, count=16) < 0.5)
        fewer = preprocess_pixels(images[:, :5], True, rows, 0, 1, role)
        assert torch.equal(turned(fewer, images[:, :5]), mirrored[:, :5])
    assert not torch.equal(found["positives"], found["negatives"])


def module_at(step, micro_batches, monkeypatch, *overrides):
    return given_to_the_objective(build(compose([*overrides, *BACKBONE])), step, micro_batches, monkeypatch)


@pytest.mark.parametrize("flip", [True, False])
def test_the_training_step_mirrors_what_it_is_given(flip, monkeypatch):
    images, labels = numbered(24), torch.arange(24) % 10
    give = module_at(5, 3, monkeypatch, "model=pmf_tiny", "data=digits", f"flip={str(flip).lower()}", "seed=2")
    whole = preprocess_pixels(images, flip, torch.arange(24), 2, 5)
    for index in range(3):
        rows = BatchRows(index, 3).rows(8)
        batch = give([images[rows], labels[rows]], index)
        assert torch.equal(batch.x, whole[rows])
        assert torch.equal(batch.y, labels[rows])
    assert turned(whole, images).any() == flip


def test_drifting_mirrors_positives_and_negatives(monkeypatch):
    positives, negatives, labels = numbered(6, 4), numbered(6, 3), torch.arange(6)
    give = module_at(5, 1, monkeypatch, "model=drifting_tiny", "data=digits", "flip=true")
    batch = give([positives, labels, negatives], 0)
    for role, found, images in (("positives", batch.x, positives), ("negatives", batch.negatives, negatives)):
        assert torch.equal(found, preprocess_pixels(images, True, torch.arange(6), 0, 5, role))
        assert turned(found, images).any()


@pytest.mark.slow
def test_who_mirrors():
    """As the official codes do: JiT, and Drifting on pixels; digits, latents, pMF, iMF and the autoencoder do not."""
    mirroring = {model for model in choices("model") if compose([f"model={model}"]).flip}
    jit = {f"jit_{size}" for size in ("b16", "b32", "b64", "l16", "l32", "h16", "h32", "g16", "g32")}
    assert mirroring == jit | {"drifting_b16", "drifting_l16"}


PIXELS = Shapes("some_pixels", 16, 3, 10, 40, 10)
LATENTS = type("Latents", (Shapes,), {"latents": True})("some_latents", 16, 3, 10, 40, 10)


@pytest.mark.parametrize(
    ("source", "overrides", "words"),
    [
        (
            LATENTS,
            ["data=imagenet256_latents", "model=imf_b2", "flip=true"],
            "flip=true: some_latents provides",
        ),
        (LATENTS, ["data=imagenet256_latents", "model=mae_r256"], "objective.crop, objective.flip: some_lat"),
        (LATENTS, ["data=digits", "model=pmf_tiny"], "decoder=null: some_latents provides latents"),
        (PIXELS, ["model=mae_r256", "flip=true"], "flip=true objective.flip=true: .* mirrored twice"),
    ],
)
def test_what_does_not_go_together_is_refused(source, overrides, words):
    with pytest.raises(UserError, match=words):
        check(overrides, source)


def test_what_goes_together_is_not_refused():
    check(["data=imagenet256_latents", "model=imf_b2"], LATENTS)
    whole = ["objective.crop=null", "objective.flip=false"]
    check(["data=imagenet256_latents", "model=mae_r256", *whole], LATENTS)
    check(["model=mae_r256"], PIXELS)
    check(["model=pmf_tiny", "flip=true"], PIXELS)


def check(overrides, source):
    cfg = compose(overrides)
    check_inputs(cfg, source, make_objective(cfg))


@pytest.mark.slow
def test_a_run_mirrors_and_resumes(tmp_path):
    """A run stopped half-way goes on as if it had not been; and mirroring makes a difference."""
    data = ["data=shapes", "data.resolution=16", "data.images=40"]
    base = [*RUN, *data, "flip=true", "sample_grid.enabled=false", "batch=8", "micro_batch=4"]

    def weights(name, *overrides):
        summary = train(compose([*base, f"run_dir={tmp_path / name}", *overrides]))
        return torch.load(summary["checkpoint"], weights_only=True)["state_dict"]

    straight = weights("straight", "steps=4")
    weights("broken", "steps=2")
    resumed = weights("broken", "steps=4", "ckpt=last")
    plain = weights("plain", "steps=4", "flip=false")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert any(not torch.equal(value, plain[name]) for name, value in straight.items())
