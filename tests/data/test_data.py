import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.images.class_folders import count_class_folders
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.data.transforms import centre_crop, to_float, to_uint8
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate, register_resolver

CONF = Path(__file__).parents[2] / "conf" / "data"


def entry(name, **overrides):
    """Build a data entry as the commands do."""
    register_resolver("class_folders", count_class_folders)
    data = OmegaConf.load(CONF / f"{name}.yaml")
    return instantiate(OmegaConf.create({"data": OmegaConf.merge(data, overrides)}).data)


def digits(**overrides) -> Digits:
    return entry("digits", **overrides)


def test_pixels_go_there_and_back():
    levels = torch.arange(256).to(torch.uint8)
    assert to_float(levels).dtype == torch.float32
    assert to_float(levels)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert torch.equal(to_uint8(to_float(levels).double()), levels)
    # outside is clipped; 0.5 / 127.5 is the border between levels 127 and 128, half way goes to even
    values = torch.tensor([-7.0, 7.0, -0.1 / 127.5, 0.1 / 127.5, 0.6 / 127.5])
    assert to_uint8(values).tolist() == [0, 255, 127, 128, 128]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]  # bfloat16 arithmetic says 192


def test_array_dataset_is_the_same_from_tensor_and_from_memory_map(tmp_path):
    images = torch.arange(5 * 12).reshape(5, 3, 2, 2).to(torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for held in (images, mapped):
        dataset = ArrayDataset(held, torch.arange(5))
        assert len(dataset) == 5
        image, label = dataset[3]
        assert torch.equal(image, images[3])
        assert (label, type(label)) == (3, int)
        assert [label for _, label in dataset.__getitems__([4, 0])] == [4, 0]
        batch, labels = dataset.batch([4, 0])
        batch += 1  # writable, and a copy
        assert torch.equal(batch, images[[4, 0]] + 1)
        assert labels.tolist() == [4, 0]
        with pytest.raises(IndexError):
            dataset[5]


def test_every_share_of_the_split_is_stratified():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 30)
    quantiles = class_quantiles(labels, "test")
    for share, counts in ((0.1, [4, 1, 3]), (0.5, [20, 5, 15]), (1.0, [40, 10, 30])):
        assert torch.bincount(labels[quantiles < share], minlength=3).tolist() == counts
    assert not torch.equal(quantiles, class_quantiles(labels, "other"))


def test_digits_split_is_fixed_stratified_and_disjoint():
    small, large = digits(resolution=8), digits(resolution=32, channels=3)
    train, held_out = small.train(), small.held_out()
    assert (len(train), len(held_out)) == (1437, 360)
    assert set(torch.bincount(held_out.labels).tolist()) <= {34, 35, 36, 37}
    both = torch.cat([train.images, held_out.images])
    assert len({image.numpy().tobytes() for image in both}) == 1797  # all different, so none is in both
    assert torch.equal(held_out.labels, large.held_out().labels)
    # the split is part of every published number
    assert hashlib.sha256(held_out.images.numpy().tobytes()).hexdigest()[:16] == "5cc8cc95c4fa2cba"


def test_digits_pixels():
    from sklearn.datasets import load_digits

    native, train = digits(resolution=8).train(), digits(resolution=32, channels=3).train()
    originals = {(image * (255 / 16)).round().astype(np.uint8).tobytes() for image in load_digits().images}
    assert {image.numpy().tobytes() for image in native.images} <= originals  # native size is untouched
    assert train.images.shape == (1437, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.images[:, :, 0, 0].float().mean() < 1  # black background
    blocks = train.images[:, 0].reshape(-1, 8, 4, 8, 4).float().mean((2, 4))
    assert (blocks - native.images[:, 0].float()).abs().mean() < 12  # enlarged, neither shifted nor turned
    assert (blocks.flip(-1) - native.images[:, 0].float()).abs().mean() > 30


def test_digits_fingerprint_and_refusals():
    assert digits().fingerprint() == digits().fingerprint()
    others = [digits(resolution=16), digits(channels=3), digits(held_out_images=100)]
    assert len({source.fingerprint() for source in [digits(), *others]}) == 4
    for overrides, words in (
        ({"channels": 4}, "data.channels=4: .* 1 or 3"),
        ({"resolution": 4}, "data.resolution=4: .* 8 or more"),
        ({"classes": 9}, "data.classes=9"),
        ({"held_out_images": 1797}, "data.held_out_images=1797: .* 1796"),
    ):
        with pytest.raises(UserError, match=words):
            digits(**overrides).check()
        with pytest.raises(UserError, match=words):
            digits(**overrides).train()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_crop_halves_by_box_means_then_cuts_the_centre():
    image = noise(16, 23)
    cropped = np.asarray(centre_crop(Image.fromarray(image), 8))  # 16x23 -> 8x11, margin 3: one left, two right
    means = Image.fromarray(image).resize((11, 8), Image.Resampling.BOX)
    assert np.array_equal(cropped, np.asarray(means)[:, 1:9])
    even = noise(16, 16)
    blocks = even.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(centre_crop(Image.fromarray(even), 8)) - blocks).max() <= 1  # rounded twice


def test_crop_resizes_bicubically_below_twice_the_size_and_enlarges():
    image = Image.fromarray(noise(15, 20))  # 15 < 2 * 8: no halving
    expected = np.asarray(image.resize((11, 8), Image.Resampling.BICUBIC))[:, 1:9]
    assert np.array_equal(np.asarray(centre_crop(image, 8)), expected)
    assert centre_crop(Image.fromarray(noise(3, 5)), 8).size == (8, 8)
    same = noise(8, 8)
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(same), 8)), same)
    assert centre_crop(Image.fromarray(noise(1, 300)), 8).size == (8, 8)
