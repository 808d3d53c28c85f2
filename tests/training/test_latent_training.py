"""Training on latents: drawn from moments, normalised, queued by drifting, seen by the autoencoder, shown as pixels."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from common import given_to_the_objective, normal
from PIL import Image
from shrunk import BACKBONE, RUN
from test_latents import ARCHITECTURE, NUMBERS

from pmf_lightning import UserError, build, compose
from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.queues.class_queues import ClassQueues
from pmf_lightning.data.queues.datamodule import QueueData
from pmf_lightning.data.queues.queue_sizes import QueueSizes
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.data.transforms import preprocess_latents
from pmf_lightning.encoders.classifier.train import cached_classifier
from pmf_lightning.encoders.drifting.train_mae import cached_mae
from pmf_lightning.train import train
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.rng import BatchRows

MEAN, STD = (torch.tensor(list(NUMBERS[key]))[:, None, None] for key in ("mean", "std"))
ITEMS = 40


def moments(count=ITEMS, side=8):
    """Raw moments as an encoder gives them: means about as spread as latents are, standard deviations above 0."""
    mean = MEAN + STD * normal("mean", shape=(count, 4, side, side), dtype=torch.float32)
    std = 0.1 + normal("std", shape=(count, 4, side, side), dtype=torch.float32).abs()
    return torch.stack((mean, std), dim=1)


@dataclass(frozen=True)
class LatentSource(DataSourceBase):
    """40 latents of 4 x 8 x 8 in ten classes."""

    name: str = "few_latents"
    resolution: int = 8
    channels: int = 4
    classes: int = 10

    latents: ClassVar[bool] = True

    def check(self):
        pass

    def train(self):
        return ArrayDataset(moments(), torch.arange(ITEMS) % 10)

    held_out = train

    def fingerprint(self):
        return "few latents"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SD-VAE of random weights, about as strong as a trained one."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKL(**ARCHITECTURE).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            spread = 1 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.1
            weight.copy_(spread * normal("vae", name, shape=tuple(weight.shape)) + (name.endswith("norm.weight")))
    path = tmp_path_factory.mktemp("weights") / "vae"
    vae.save_pretrained(path)
    return path


@pytest.fixture
def overrides(folder, monkeypatch):
    """A run on latents, whose data entry provides ``LatentSource``."""
    monkeypatch.setattr("pmf_lightning.training.prepare.make_source", lambda cfg: LatentSource())
    data = ["data=imagenet256_latents", "data.resolution=8", "data.classes=10", f"decoder.weights={folder}"]
    return [*data, "log_every_steps=1", "sample_grid.every_images=1000", "checkpoint.every_images=1000", "metrics=none"]


def normalise(raw):
    return (raw - MEAN) / STD


# From moments to what the network sees


def test_latents_are_mean_plus_std_times_noise_normalised():
    given, rows = moments(12), torch.arange(12)
    seen = preprocess_latents(given, normalise, rows, 3, 7)
    for row in range(12):
        e = torch.empty(4, 8, 8).normal_(generator=rng.generator(3, "latent", 7, row))
        expected = (given[row, 0] + given[row, 1] * e - MEAN) / STD
        assert (seen[row] - expected).abs().max() < 1e-5
    for seed, step in ((4, 7), (3, 8)):
        assert (preprocess_latents(given, normalise, rows, seed, step) - seen).abs().mean() > 0.05
    for count in (2, 3):
        for index in range(count):
            share = BatchRows(index, count).rows(12 // count)
            assert torch.equal(preprocess_latents(given[share], normalise, share, 3, 7), seen[share])


def test_noise_of_latents_is_standard_normal():
    given = torch.stack((torch.zeros(100, 4, 8, 8), torch.ones(100, 4, 8, 8)), dim=1)
    e = preprocess_latents(given, lambda raw: raw, torch.arange(100), 0, 0)
    assert abs(e.mean()) < 0.02
    assert abs(e.std() - 1) < 0.02
    assert abs((e[:-1] * e[1:]).mean()) < 0.02


def test_every_positive_has_noise_of_its_own():
    given, rows = moments(12).view(3, 4, 2, 4, 8, 8), torch.arange(3)
    seen = preprocess_latents(given, normalise, rows, 0, 1, "positives")
    assert seen.shape == (3, 4, 4, 8, 8)
    e = torch.empty(4, 4, 8, 8).normal_(generator=rng.generator(0, "latent", "positives", 1, 2))
    expected = (given[2, :, 0] + given[2, :, 1] * e - MEAN) / STD
    assert (seen[2] - expected).abs().max() < 1e-5
    assert torch.equal(preprocess_latents(given[2:], normalise, rows[2:], 0, 1, "positives"), seen[2:])
    assert not torch.equal(preprocess_latents(given, normalise, rows, 0, 1, "negatives"), seen)


def test_the_training_step_draws_them(overrides, monkeypatch):
    module = build(compose([*RUN, *overrides, "backbone.patch=2", "seed=6"]))
    give = given_to_the_objective(module, 9, 2, monkeypatch)
    given, labels = moments(8), torch.arange(8)
    whole = preprocess_latents(given, normalise, torch.arange(8), 6, 9)
    for index in range(2):
        rows = BatchRows(index, 2).rows(4)
        batch = give([given[rows], labels[rows]], index)
        assert (batch.x - whole[rows]).abs().max() < 1e-6
    module.decoder = None
    with pytest.raises(UserError, match="decoder=null"):
        module.training_step([given, labels], 0)


# Runs


@pytest.mark.slow
def test_a_run_on_latents_shows_pixels_and_resumes(overrides, tmp_path):
    run = [*RUN, *overrides, "backbone.patch=2", "batch=8", "micro_batch=4", "sample_grid.rows=1"]

    def weights(name, *changes):
        summary = train(compose([*run, f"run_dir={tmp_path / name}", *changes]))
        return summary, torch.load(summary["checkpoint"], weights_only=True)["state_dict"]

    summary, straight = weights("straight", "steps=4", "micro_batch=8")
    with Image.open(summary["grid"]) as grid:
        assert grid.size == (10 * 66 + 2, 66 + 2)
        assert np.asarray(grid)[2:66, 2:66].std() > 1, "not one colour"
    weights("broken", "steps=2", "sample_grid.enabled=false")
    _, resumed = weights("broken", "steps=4", "ckpt=last", "sample_grid.enabled=false")
    for name, value in straight.items():
        assert (value - resumed[name]).abs().max() < 1e-5, "micro-batches change rounding only"


def test_an_autoencoder_of_latents_shows_pixels(overrides, tmp_path):
    whole = [
        "objective.crop=null",
        "objective.flip=false",
        "sampling.ema=raw",
        "batch=8",
        "steps=2",
        "sample_grid.rows=1",
    ]
    small = ["backbone.base_channels=32", "backbone.blocks=[1, 1, 1, 1]", "backbone.patch=1", "data.resolution=8"]
    run = ["model=mae_tiny", *overrides, *small, *whole, "sample_grid.columns=5"]
    summary = train(compose([*run, f"run_dir={tmp_path}"]))
    assert math.isfinite(summary["held_out_error"])
    with Image.open(summary["grid"]) as grid:
        assert grid.size == (5 * 66 + 2, 3 * 66 + 2)


DRIFTING = [
    *["model=drifting_tiny", "backbone.patch=2", "batch=16", "objective.samples_per_label=4", "queues.push_per_step=6"],
    *["queues.positives=3", "queues.negatives=2", "queues.per_class=4", "queues.global_size=9", "sampling.ema=raw"],
]


@pytest.mark.slow
def test_drifting_on_latents_resumes(overrides, tmp_path, capsys):
    run = [*DRIFTING, *BACKBONE, *overrides, "sample_grid.rows=1"]

    def weights(name, *changes):
        summary = train(compose([*run, f"run_dir={tmp_path / name}", *changes]))
        return summary, torch.load(summary["checkpoint"], weights_only=True)["state_dict"]

    summary, straight = weights("straight", "steps=4")
    assert "10 classes x 4 + 9 of any class, 2x4x8x8 float32: 0.1 MB in memory" in capsys.readouterr().out
    with Image.open(summary["grid"]) as grid:
        assert grid.size == (10 * 66 + 2, 66 + 2)
    weights("broken", "steps=2", "sample_grid.enabled=false")
    _, resumed = weights("broken", "steps=4", "ckpt=last", "sample_grid.enabled=false")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


# Queues


@pytest.mark.parametrize("where", ["memory", "file"])
def test_queues_hold_moments_whole(where, tmp_path):
    sizes = QueueSizes(10, 3, 5, (2, 4, 8, 8), "float32")
    queues = ClassQueues(sizes, None if where == "memory" else tmp_path)
    assert queues.by_class.images.nbytes + queues.any_class.images.nbytes == sizes.bytes == 35 * 512 * 4
    data = LatentSource().train()
    queues.push(*data.batch(range(20)), list(range(20)))
    drawn = queues.positives(torch.tensor([4]), torch.tensor([0]), 2, 0, 0)
    assert drawn.dtype == torch.float32
    numbers = sorted(int((data.images == image).flatten(1).all(1).nonzero()) for image in drawn[0])
    assert numbers == [4, 14]
    back = ClassQueues(sizes)
    back.load_state_dict(queues.state_dict(), data.batch)
    assert torch.equal(back.negatives(torch.arange(3), 5, 0, 0), queues.negatives(torch.arange(3), 5, 0, 0))
    with pytest.raises(ValueError, match=r"images of torch.float64 in queues of float32"):
        queues.push(data.images[:1].double(), data.labels[:1], [0])


def test_the_papers_latent_queues_are_said_in_full():
    sizes = QueueSizes(1000, 128, 1000, (2, 4, 32, 32), "float32")
    assert sizes.bytes == 129_000 * 8192 * 4
    assert "2x4x32x32 float32: 4.2 GB in memory" in sizes.report()
    settings = QueueSettings(
        labels=4, positives=3, negatives=2, push_per_step=6, per_class=5, global_size=9, folder=None
    )
    found = QueueData(LatentSource(), 0, settings, num_workers=0).sizes
    assert (found.shape, found.dtype) == ((2, 4, 8, 8), "float32")


# What needs pixels


def test_what_learns_from_pixels_is_refused(tmp_path):
    cfg = compose(["drift_features=mae_tiny", "model=drifting_tiny"])
    with pytest.raises(UserError, match=r"few_latents provides latents: .*drift_features=mae_run"):
        cached_mae(LatentSource(), instantiate(cfg.drift_features.settings), str(tmp_path))
    with pytest.raises(UserError, match=r"few_latents provides latents: .* classifier"):
        cached_classifier(LatentSource(), instantiate(cfg.metrics.classifier), str(tmp_path))
