"""The benchmark of reading: torchvision's side gives the same images as each source, and any data can be measured."""

import numpy as np
import pytest
import torch
from named_files import write_cifar, write_flowers, write_idx, write_stl
from PIL import Image

from pmf_lightning import UserError, compose
from pmf_lightning.benchmark import benchmark
from pmf_lightning.data.sources.folder import Folder
from pmf_lightning.data.sources.named.source import NamedSet
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.profiling.benchmarks.reader import ReaderSettings, benchmark_reader, describe
from pmf_lightning.profiling.benchmarks.torchvision_readers import torchvision_reader


def named(dataset, root, side, channels, classes, train="train", held_out="test"):
    splits = ([train], [held_out])
    return NamedSet("set", dataset, str(root), side, channels, classes, *splits, False, str(root / "cache"))


def same_images(source, folder, wanted):
    """Torchvision's reader gives the training images; a folder's order is its own."""
    images = source.train()
    theirs, said = torchvision_reader(source, images, folder)
    assert wanted in said
    pairs = [theirs[i] for i in range(len(theirs))]
    ours, labels = images.batch(range(len(images)))

    def keyed(images, labels):
        return sorted((int(label), image.numpy().tobytes()) for image, label in zip(images, labels, strict=True))

    assert keyed([image for image, _ in pairs], [label for _, label in pairs]) == keyed(ours, labels.tolist())


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (14, 1), (60, 3)])
def test_idx_files_by_torchvision(tmp_path, side, channels):
    write_idx(tmp_path)
    same_images(named("MNIST", tmp_path, side, channels, 10), tmp_path, "torchvision.datasets.MNIST")


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar_and_stl_by_torchvision(tmp_path, channels):
    write_cifar(tmp_path / "cifar-10-batches-py")
    same_images(named("CIFAR10", tmp_path, 35, channels, 10), tmp_path, "torchvision.datasets.CIFAR10")
    write_stl(tmp_path / "stl10_binary", count=3)
    if channels == 3:
        same_images(named("STL10", tmp_path, 32, 3, 10), tmp_path, "torchvision.datasets.STL10")


def test_files_by_torchvisions_loader(tmp_path):
    write_flowers(tmp_path / "flowers-102")
    same_images(named("Flowers102", tmp_path, 16, 3, 102), tmp_path, "the same files by ImageFolder's loader")
    for number in range(6):
        path = tmp_path / "pets" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24 + number, 3), number * 30, np.uint8)).save(path)
    pets = Folder("pets", str(tmp_path / "pets"), 16, 3, 2, "fail", 0, str(tmp_path / "cache"))
    same_images(pets, tmp_path, "the same files by ImageFolder's loader")


def test_other_images_are_written_as_png(tmp_path):
    same_images(Shapes("shapes", 16, 3, 10, 12, 4), tmp_path / "copies", "12 of the images as PNG files")


def test_any_data_is_measured(tmp_path):
    found = benchmark_reader(Shapes("shapes", 16, 3, 10, 12, 4), ReaderSettings(None, 8, 4, [0]), 2)
    numbers = found["by_workers"]["0"]
    assert 0 < numbers["ratio_min"] <= numbers["ratio"] <= numbers["ratio_max"]
    assert min(numbers["ours"], numbers["torchvision"]) > 0
    assert (found["images"], found["resolution"]) == (12, 16)
    assert f"torchvision {numbers['torchvision']:.0f}" in describe(found)


def test_latents_are_refused():
    latents = type("Latents", (Shapes,), {"latents": True})("some", 16, 3, 10, 40, 10)
    with pytest.raises(UserError, match=r"what=data reads colour pixels of shards, or any other images"):
        benchmark_reader(latents, ReaderSettings(None, 8, 4, [0]), 1)


@pytest.mark.slow
def test_the_command_measures_digits(tmp_path):
    small = ["what=data", "data=digits", "reader.images=8", "reader.batch=4", "reader.num_workers=[0]", "repeats=1"]
    result = benchmark(compose([*small, f"out={tmp_path / 'speed.json'}"], "benchmark"))
    assert result["data"] == "digits"
    assert torch.tensor(result["by_workers"]["0"]["ratio"]) > 0
