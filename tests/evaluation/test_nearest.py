"""Nearest training images: a copy is found, and sample draws each image above its own."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from playing import module, write_run

from pmf_lightning import sample as sample_command
from pmf_lightning.config.compose import compose
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.evaluation.nearest import TrainingImages, above_their_nearest, training_images
from pmf_lightning.utils.errors import UserError

TWO, TWENTY = (torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1) for levels in ([0, 200], list(range(1, 21))))


def among(images):
    """TrainingImages of the first 30 of 40 images, whose pixels are their features."""
    return TrainingImages(
        lambda levels: levels.flatten(1).float(),
        ArrayDataset(images[:30], torch.arange(30)),
        ArrayDataset(images[30:], torch.arange(10)),
    )


@pytest.fixture
def images():
    return torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_copy_is_found(images):
    there = among(images)
    copy = there.nearest(images[7:8], 3)
    assert (copy.labels[0], copy.distances[0], copy.closer_than) == (7, 0, 1)
    assert torch.equal(copy.images[0], images[7])
    assert copy.distances.tolist() == sorted(copy.distances.tolist())
    real = there.nearest(images[30:31])
    expected = (images[:30].flatten(1).float() - images[30].flatten().float()).norm(dim=1).min()
    assert real.distances[0] == pytest.approx(expected.item())
    assert real.closer_than < 1


def test_images_stand_above_their_nearest(images):
    shown = images[[3, 8, 12]]
    pairs, closer = above_their_nearest(shown, among(images), columns=2)
    grey = torch.full_like(images[0], 128)
    expected = [images[3], images[8], images[3], images[8], images[12], grey, images[12], grey]
    assert torch.equal(pairs, torch.stack(expected))
    assert closer == 1


def test_an_image_is_close_as_one_in_twenty_new_images_is():
    """Grey pixels 0 and 200 for training; the held-out ones are 1, 2, ..., 20 levels from the first."""
    there = TrainingImages(
        lambda levels: levels.flatten(1).float(), *(ArrayDataset(x, torch.arange(len(x))) for x in (TWO, TWENTY))
    )
    shares = [there.nearest(TWENTY[place : place + 1], 1).closer_than for place in (0, 1, 19)]
    assert shares == pytest.approx([0.95, 0.9, 0], abs=1e-12)
    assert above_their_nearest(TWENTY, there, columns=4)[1] == 1 / 20


def test_sample_writes_them(tmp_path, images, monkeypatch, capsys):
    run = write_run(tmp_path / "run")
    digits = torch.randint(256, (40, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("pmf_lightning.commands.sample.training_images", lambda *given: among(digits))
    given = [f"ckpt={run}", f"out={tmp_path / 'out'}", "n=4", "classes=[3,7]", "nearest_images=30"]
    monkeypatch.setattr("sys.argv", ["sample", *given])
    sample_command.main()
    assert "each image above the nearest of 30 training images" in capsys.readouterr().out
    grid, pairs = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("grid.png", "nearest.png"))
    assert pairs.shape[1] == grid.shape[1]
    assert pairs.shape[0] > 1.8 * grid.shape[0]


@pytest.mark.parametrize(("data", "words"), [("imagenet256", "nowhere"), ("imagenet256_latents", "latents")])
def test_data_that_are_not_at_hand(tmp_path, monkeypatch, data, words):
    made = module("pmf_tiny")
    section = OmegaConf.to_container(compose([f"data={data}", "data.root=nowhere"]).data, resolve=True)
    monkeypatch.setitem(made.config, "data", section)
    with pytest.raises(UserError, match=words):
        training_images(made, 10, str(tmp_path))


def test_data_without_held_out_images(tmp_path, monkeypatch):
    Image.new("L", (32, 32)).save(tmp_path / "0.png")
    made = module("pmf_tiny")
    given = ["data=folder", f"data.root={tmp_path}", "data.held_out_fraction=0"]
    monkeypatch.setitem(made.config, "data", OmegaConf.to_container(compose(given).data, resolve=True))
    with pytest.raises(UserError, match="folder was trained without held-out images"):
        training_images(made, 10, str(tmp_path))


@pytest.mark.slow
def test_training_images_of_digits(tmp_path):
    there = training_images(module("pmf_tiny"), 300, str(tmp_path))
    assert len(there.train) == 300
    found = there.nearest(there.train.batch([5])[0])
    assert found.distances[0] == pytest.approx(0, abs=1e-3)
    assert found.closer_than > 0.9
