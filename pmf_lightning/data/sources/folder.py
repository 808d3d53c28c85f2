"""Data source of the images in a folder or a zip."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.images.class_folders import ORDER, ImageTree, image_tree
from pmf_lightning.data.images.decoder import check_background, describe_conversions
from pmf_lightning.data.images.files import FolderFiles
from pmf_lightning.data.images.labels import check_rule
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.data.sources.decode_cache import Decoded, DecodeJob, cannot_read, open_decoded
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

POLICIES = ("skip", "fail")


@dataclass(frozen=True)
class Folder(DataSourceBase):
    """Images ``root/<class>/**`` of any size, cropped to squares and decoded once into the cache.

    ``root`` is a folder, a zip, or a folder in a zip. ``label`` determines the labels (``class_folders.image_tree``):
    by default they follow the names of the class folders, and images without class folders are one class. Supported
    formats are Pillow's (see data/images/kinds.py), at any depth; hidden files are ignored. ``unreadable`` determines
    whether a broken file is skipped or fatal. A fraction ``held_out_fraction`` of every class, rounded, is held out.
    ``cache_dir`` None means the user's cache folder. Transparent pixels show ``background``. See
    ``transforms.read_square`` for decoding and cropping.
    """

    crop: ClassVar[str] = CROP_RULE

    name: str
    root: str | None
    resolution: int
    channels: int
    classes: int
    unreadable: str
    held_out_fraction: float | int
    cache_dir: str | None
    background: str = "white"
    label: str = "auto"

    def check(self) -> None:
        """Raise UserError for invalid settings or an invalid folder, reading names only."""
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: set data.channels to 3 (colour) or 1 (grey)")
        if self.resolution < 1:
            raise UserError(f"data.resolution={self.resolution}: set it to 1 or more")
        if self.unreadable not in POLICIES:
            raise UserError(f"data.unreadable={self.unreadable}: set it to {' or '.join(POLICIES)}")
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"data.held_out_fraction={self.held_out_fraction}: set it from 0 to below 1")
        check_background(self.background, "data.background")
        check_rule(self.label, "data.label")
        found = len(self._tree.class_names)
        if found != self.classes:
            what = "class folders" if self.label == "auto" else "classes"
            raise UserError(f"data.classes={self.classes}, but {self.root} holds {found} {what}: leave it out")
        cache_root(self.cache_dir)

    @property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        return self._tree.class_names

    @property
    def older_class_names(self) -> list[str]:
        """Return the names in alphabetical order, by which earlier versions numbered the classes."""
        return sorted(self.class_names)

    @property
    def has_held_out(self) -> bool:
        """Return whether a fraction is held out."""
        return self.held_out_fraction > 0

    @property
    def left_out(self) -> list[LeftOut]:
        """Return the skipped files below the root, each with the reason."""
        return self._tree.left_out

    def train(self) -> ArrayDataset:
        """Return the training split, uint8 [N, channels, resolution, resolution], memory-mapped."""
        return self._rows(held_out=False)

    def held_out(self) -> ArrayDataset:
        """Return the split that is not used in training; UserError if the held-out fraction rounds to no image."""
        return self._rows(held_out=True)

    def original_files(self) -> list[tuple[Path, int]] | None:
        """Return all files and their labels; None for those in a zip."""
        files = self._tree.files
        if not isinstance(files, FolderFiles):
            return None
        return [(files.root / name, label) for name, label in zip(self._tree.names, self._tree.labels, strict=True)]

    def fingerprint(self) -> str:
        """Return a hex digest of the files and settings that determine images and split."""
        return digest(self._decoded_key, self.held_out_fraction)

    def _rows(self, held_out: bool) -> ArrayDataset:
        decoded = self._decoded
        border = int(torch.searchsorted(decoded.quantiles, self.held_out_fraction))
        rows = slice(0, border) if held_out else slice(border, None)
        if held_out and border == 0:
            lowest = float(decoded.quantiles[0])
            above = f"set it above {lowest:.3g}, or " if lowest < 0.5 else ""  # 0.5: one image in every class
            raise UserError(
                f"data.held_out_fraction={self.held_out_fraction} holds out none of the "
                f"{counted(len(decoded.images), 'image')} in {self.root}: "
                f"{above}train without held-out images, metrics=none"
            )
        return ArrayDataset(decoded.images[rows], decoded.labels[rows])

    @cached_property
    def _tree(self) -> ImageTree:
        return image_tree(self.root, label=self.label)

    @cached_property
    def _decoded_key(self) -> str:
        """Cache key of the decoded images, without the split, since every split is a prefix of the same order."""
        tree, lines = self._tree, []
        for label, name in zip(tree.labels, tree.names, strict=True):
            lines.append(f"{label} {name} {tree.files.state(name)}")
        rules = (CROP_RULE, ORDER, self.background)
        return digest("folder", *rules, self.resolution, self.channels, "\n".join(lines))

    @cached_property
    def _decoded(self) -> Decoded:
        self.check()
        tree = self._tree
        print("\n".join(tree.summary()), flush=True)
        labels = torch.tensor(tree.labels)
        quantiles = class_quantiles(labels, "folder")
        order = quantiles.argsort(stable=True)
        job = DecodeJob(
            files=tree.files,
            names=[tree.names[row] for row in order.tolist()],
            labels=labels[order],
            quantiles=quantiles[order],
            resolution=self.resolution,
            channels=self.channels,
            background=self.background,
        )
        fail = self.unreadable == "fail"
        decoded = open_decoded(cache_root(self.cache_dir) / f"folder-{self._decoded_key}", job, fail)
        self._check_unreadable(decoded, fail)
        return decoded

    def _check_unreadable(self, decoded: Decoded, fail: bool) -> None:
        """Report conversions and unreadable files, now or of the cache; UserError if ``fail`` or a class is empty."""
        if decoded.done:
            print(describe_conversions(decoded.done), flush=True)
        bad, tree = decoded.unreadable, self._tree
        if bad and fail:
            raise cannot_read(tree.root, bad[0])
        for label, count in enumerate(torch.bincount(decoded.labels, minlength=len(tree.class_names)).tolist()):
            if not count:
                name = tree.class_names[label]
                folder = f"class folder {tree.root / name}" if self.label == "auto" else f"class {name} of {tree.root}"
                raise UserError(f"{folder} holds no readable image: repair or remove it")
        if bad:
            few = ", ".join(line.split("\t")[0] for line in bad[:3]) + (", ..." if len(bad) > 3 else "")
            warnings.warn(
                f"{len(bad)} of {len(tree.names)} images cannot be read and are skipped: {few} "
                f"(all listed in {decoded.unreadable_file})",
                stacklevel=2,
            )
