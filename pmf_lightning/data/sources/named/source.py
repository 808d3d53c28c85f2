"""Data source of the sets that torchvision knows by name: CIFAR, MNIST, Fashion-MNIST, STL-10, Flowers-102, CelebA."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.images.files import FolderFiles
from pmf_lightning.data.sources.decode_cache import DecodeJob, open_decoded
from pmf_lightning.data.sources.decoding import check_size
from pmf_lightning.data.sources.named import finding, fitting, known, photos
from pmf_lightning.data.sources.named.arrays import Arrays
from pmf_lightning.data.sources.named.known import ArraySet, KnownSet
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.errors import UserError, suggestions

SETS: dict[str, KnownSet] = {
    one.torchvision: one
    for one in (
        *(known.CIFAR10, known.CIFAR100, known.MNIST, known.FASHION_MNIST, known.STL10),
        *(photos.FLOWERS102, photos.CELEBA),
    )
}


@dataclass(frozen=True)
class NamedSet(DataSourceBase):
    """The images of one class of torchvision.datasets, in its official splits.

    ``dataset`` is the name of that class. The files are looked for in ``root``, then in ./data, in our cache, and where
    distributions put them; with ``download`` torchvision fetches them otherwise. Square arrays are brought to
    ``resolution`` by ``fitting.fit``, which pads instead of enlarging by a fraction. Photographs are cropped and
    decoded once into the cache, as those of ``data=folder`` are. ``train_splits`` and ``held_out_splits`` are names of
    official splits. With ``classes`` 1 all images are one class. ``label`` is an attribute of CelebA (two classes).
    """

    crop: ClassVar[str] = CROP_RULE  # it changes no square image of the same size

    name: str
    dataset: str
    root: str | None
    resolution: int
    channels: int
    classes: int
    train_splits: Sequence[str]
    held_out_splits: Sequence[str]
    download: bool
    cache_dir: str | None
    label: str | None = None

    def check(self) -> None:
        """Raise UserError for invalid settings or missing files, which are downloaded with ``download``."""
        if self.dataset not in SETS:
            raise UserError(f"data.dataset={self.dataset}: unknown; {suggestions(self.dataset, SETS)}")
        check_size(self.channels, self.resolution)
        self._check_splits()
        own = self._own_classes
        if self.classes not in (own, 1):
            raise UserError(
                f"data.classes={self.classes}: {self.dataset} has {own}; set data.classes={own}"
                + (", or 1 for images without classes" if own > 1 else "")
            )
        _ = self.class_names

    def _check_splits(self) -> None:
        splits = SETS[self.dataset].files
        for option in ("train_splits", "held_out_splits"):
            given = list(getattr(self, option))
            if len(set(given)) < len(given):
                raise UserError(f"data.{option}=[{','.join(map(str, given))}]: a split is listed twice; list it once")
            for split in given:
                if split not in splits:
                    raise UserError(f"data.{option}: {self.dataset} has no split {split}; it has {', '.join(splits)}")
                if split == "unlabeled" and self.classes > 1:
                    raise UserError(f"data.{option}: the split {split} has no labels; set data.classes=1 too")
        if not self.train_splits:
            raise UserError(f"data.train_splits=[]: name at least one of {', '.join(splits)}")
        if both := [split for split in self.train_splits if split in self.held_out_splits]:
            raise UserError(f"data.held_out_splits: {both[0]} is trained on; leave it out of one of the two")

    @property
    def _own_classes(self) -> int:
        return SETS[self.dataset].classes if self.label is None else 2

    @property
    def has_held_out(self) -> bool:
        """Return whether a split is held out."""
        return bool(self.held_out_splits)

    @cached_property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        names = SETS[self.dataset].class_names(self._folder, self.label)
        return names if self.classes == self._own_classes else [self.name]

    def train(self) -> ArrayDataset:
        """Return the training splits, uint8 [N, channels, resolution, resolution]."""
        return self._read(self.train_splits)

    def held_out(self) -> ArrayDataset:
        """Return the splits that are not used in training; UserError if there are none."""
        if not self.held_out_splits:
            raise UserError("data.held_out_splits=[]: no split is held out; name one")
        return self._read(self.held_out_splits)

    def original_arrays(self) -> Arrays | None:
        """Return the images of the training splits as the files have them; None for photographs."""
        chosen = SETS[self.dataset]
        if not isinstance(chosen, ArraySet):
            return None
        parts = [chosen.read(self._folder, split) for split in self.train_splits]
        return Arrays(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def original_files(self) -> list[tuple[Path, int]] | None:
        """Return the files of the training splits and their labels; None for arrays."""
        chosen = SETS[self.dataset]
        if not isinstance(chosen, photos.PhotoSet):
            return None
        lists = [chosen.listed(self._folder, split, self.label) for split in self.train_splits]
        return [(one.root / name, label) for one in lists for name, label in zip(one.names, one.labels, strict=True)]

    def fingerprint(self) -> str:
        """Return a hex digest of the files and settings that determine images and splits."""
        splits = [*self.train_splits, "/", *self.held_out_splits]
        return digest(self._key, *splits, self.classes)

    @property
    def _splits(self) -> list[str]:
        return [*self.train_splits, *self.held_out_splits]

    @cached_property
    def _folder(self) -> Path:
        """The folder of the files; it is printed if it is not the given one."""
        found = self._found()
        if self.root is not None and not found.is_relative_to(Path(self.root).expanduser()):
            print(f"data.root={self.root} holds no files of {self.dataset}: those in {found} are used", flush=True)
        return found

    def _found(self) -> Path:
        chosen, arguments = SETS[self.dataset], (self.name, self.root)
        try:
            return finding.find(chosen, *arguments, self._splits, self.cache_dir)
        except UserError:
            if not self.download:
                raise
        finding.download(chosen, *arguments, self.cache_dir)
        return finding.find(chosen, *arguments, self._splits, self.cache_dir)

    @cached_property
    def _key(self) -> str:
        """Cache key of the images, without the splits."""
        states = SETS[self.dataset].states(self._folder, self._splits)
        rules = (CROP_RULE, fitting.RULE)
        return digest(self.dataset, *rules, self.resolution, self.channels, self.label, *states)

    def _read(self, splits: Sequence[str]) -> ArrayDataset:
        """Open splits, one after another."""
        self.check()
        chosen = SETS[self.dataset]
        if isinstance(chosen, photos.PhotoSet):
            return self._decoded(chosen, splits)
        assert isinstance(chosen, ArraySet)
        parts = [chosen.read(self._folder, split) for split in splits]
        images = np.concatenate([fitting.fit(part.images, self.resolution, self.channels) for part in parts])
        return ArrayDataset(torch.from_numpy(images), self._labels(np.concatenate([part.labels for part in parts])))

    def _decoded(self, chosen: photos.PhotoSet, splits: Sequence[str]) -> ArrayDataset:
        """Decode the photographs of splits into the cache at first use."""
        lists = [chosen.listed(self._folder, split, self.label) for split in splits]
        labels = self._labels(np.array([label for one in lists for label in one.labels], np.int64))
        job = DecodeJob(
            files=FolderFiles(lists[0].root),
            names=[name for one in lists for name in one.names],
            labels=labels,
            quantiles=torch.zeros(len(labels), dtype=torch.float64),  # the official splits are used instead
            resolution=self.resolution,
            channels=self.channels,
            background="black",
        )
        key = digest(self._key, self.classes, *splits)
        decoded = open_decoded(cache_root(self.cache_dir) / f"{self.name}-{key}", job, fail=True)
        return ArrayDataset(decoded.images, decoded.labels)

    def _labels(self, labels: Int64[np.ndarray, " n"]) -> Int64[torch.Tensor, " n"]:
        """Return labels as a tensor, 0 without classes; UserError for a label out of range."""
        if self.classes < self._own_classes:
            labels = np.zeros_like(labels)
        if labels.min() < 0 or labels.max() >= self.classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(
                f"data={self.name}: {self._folder} is damaged (a label is {wrong}, and there are {self.classes} "
                f"classes): {known.AGAIN}"
            )
        return torch.from_numpy(labels)
