"""Sets of images that torchvision knows by name: their files, splits and class names, and how their arrays are read.

Names of files and folders are those of torchvision.datasets, so a folder that it downloaded is read as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pmf_lightning.data.sources.named import arrays
from pmf_lightning.data.sources.named.arrays import Arrays
from pmf_lightning.utils.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class KnownSet:
    """A set of images, without its files.

    Attributes:
        torchvision: the name of its class in torchvision.datasets.
        folders: where its files are below a root, the folder of torchvision first.
        files: the files or folders of every split, relative to their folder.
        classes: number of classes, of which each image has one; 1: it has none.
        put: what to put into a folder if nothing is found.
        homes: folders where distributions and other libraries put the files.
    """

    torchvision: str
    folders: Sequence[str]
    files: Mapping[str, Sequence[str]]
    classes: int
    put: str
    homes: Sequence[str] = ()

    def find(self, folder: Path, splits: Sequence[str]) -> bool:
        """Return whether ``folder`` holds the files of the splits."""
        return all(self.path(folder, file).exists() for split in splits for file in self.files[split])

    def path(self, folder: Path, file: str) -> Path:
        """Return the path of a file, which need not exist."""
        return folder / file

    def states(self, folder: Path, splits: Sequence[str]) -> list[str]:
        """Return name, size and time of the files of the splits, for cache keys."""
        found = [self.path(folder, file).stat() for split in splits for file in self.files[split]]
        return [f"{status.st_size} {status.st_mtime_ns}" for status in found]

    def class_names(self, folder: Path, label: str | None) -> list[str]:
        """Return the names of the classes in the order of the labels. ``label`` is an option of CelebA."""
        return list(self.in_torchvision().classes)

    def in_torchvision(self) -> Any:
        """Return the class of torchvision.datasets."""
        return getattr(import_module("torchvision.datasets"), self.torchvision)  # imported here: it takes a second


class ArraySet(KnownSet):
    """A set whose images are square arrays in few files."""

    def read(self, folder: Path, split: str) -> Arrays:
        """Return images and labels of a split; UserError for a damaged file."""
        raise NotImplementedError


class IdxSet(ArraySet):
    """A set in MNIST's format: idx files, plain or packed."""

    def path(self, folder: Path, file: str) -> Path:
        """Return the path of a file under one of its usual names; plain files come before packed ones."""
        names = [spelt + end for end in ("", ".gz") for spelt in (file, file.replace("-idx", ".idx"))]
        return next((folder / name for name in names if (folder / name).exists()), folder / file)

    def read(self, folder: Path, split: str) -> Arrays:
        """Return images and labels of a split; UserError for a damaged file, or for the files of another set."""
        images, labels = (self.path(folder, file) for file in self.files[split])
        found = readable(images, lambda: arrays.read_idx_pair(images, labels))
        first = "".join(map(str, found.labels[:10]))
        other = next((name for name, begins in FIRST_LABELS.items() if first in begins), self.torchvision)
        if other != self.torchvision:
            raise UserError(f"{images} is a file of {other}, not of {self.torchvision}: give another data.root")
        return found


class CifarSet(ArraySet):
    """CIFAR-10 or CIFAR-100: pickles, the last of ``files`` with the class names."""

    def read(self, folder: Path, split: str) -> Arrays:
        """Return images and labels of a split; UserError for a damaged file."""
        paths = [folder / file for file in self.files[split][:-1]]
        parts = [readable(path, lambda path=path: arrays.read_cifar(path)) for path in paths]
        return Arrays(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def class_names(self, folder: Path, label: str | None) -> list[str]:
        """Return the names in the file of the set; UserError if it is damaged."""
        path = folder / self.files["train"][-1]
        names = readable(path, lambda: arrays.read_cifar_names(path))
        if len(names) != self.classes:
            raise UserError(f"{path} is damaged ({len(names)} class names, not {self.classes}): {AGAIN}")
        return names


class StlSet(ArraySet):
    """STL-10, whose images without labels are the split "unlabeled"."""

    def read(self, folder: Path, split: str) -> Arrays:
        """Return images and labels of a split; UserError for a damaged file."""
        images, *labels = (folder / file for file in self.files[split])
        return readable(images, lambda: arrays.read_stl(images, labels[0] if labels else None))

    def class_names(self, folder: Path, label: str | None) -> list[str]:
        """Return the names of class_names.txt in the release."""
        return ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


AGAIN = "remove it and get it again, for example with data.download=true"


def readable(path: Path, read: Callable[[], Result]) -> Result:
    """Return what ``read`` returns; its ValueError or OSError becomes a UserError that names ``path``."""
    try:
        return read()
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); see its permissions") from error


# The first labels of the train and test files, which tell two sets with equal file names apart.
FIRST_LABELS = {"MNIST": ("5041921314", "7210414959"), "FashionMNIST": ("9003027255", "9211614657")}

_IDX = {
    split: (f"{name}-images-idx3-ubyte", f"{name}-labels-idx1-ubyte")
    for split, name in (("train", "train"), ("test", "t10k"))
}
MNIST = IdxSet("MNIST", ("MNIST/raw", "mnist"), _IDX, 10, "train-images-idx3-ubyte.gz and the three other idx files")
FASHION_MNIST = IdxSet(
    "FashionMNIST",
    ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist"),
    _IDX,
    10,
    "train-images-idx3-ubyte.gz and the three other idx files (Debian: apt install dataset-fashion-mnist)",
    homes=("/usr/share/datasets/fashion-mnist", "~/.keras/datasets/fashion-mnist"),
)
CIFAR10 = CifarSet(
    "CIFAR10",
    ("cifar-10-batches-py",),
    {
        "train": (*(f"data_batch_{number}" for number in range(1, 6)), "batches.meta"),
        "test": ("test_batch", "batches.meta"),
    },
    10,
    "the folder cifar-10-batches-py of https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    homes=("~/.keras/datasets/cifar-10-batches-py",),
)
CIFAR100 = CifarSet(
    "CIFAR100",
    ("cifar-100-python",),
    {"train": ("train", "meta"), "test": ("test", "meta")},
    100,
    "the folder cifar-100-python of https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    homes=("~/.keras/datasets/cifar-100-python",),
)
STL10 = StlSet(
    "STL10",
    ("stl10_binary",),
    {
        "train": ("train_X.bin", "train_y.bin"),
        "test": ("test_X.bin", "test_y.bin"),
        "unlabeled": ("unlabeled_X.bin",),
    },
    10,
    "the folder stl10_binary of http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
)
