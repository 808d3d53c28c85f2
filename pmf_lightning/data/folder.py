"""Any images on disk, one folder per class."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pmf_lightning.cache import cache_root, digest
from pmf_lightning.data.crop import CROP_RULE
from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.decoded import Decoded, Wanted, cannot_read, open_decoded
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
POLICIES = ("skip", "fail")


def class_folders(root: str | None) -> list[Path]:
    """Return the class folders of ``root`` in the order of their labels: sorted by name, hidden ones left out.

    Raises UserError when ``root`` is None, no folder, or holds no folder.
    """
    if root is None:
        raise UserError("data=folder needs images: set data.root to a folder that holds one folder per class")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"data.root={root} is not a folder: set it to a folder that holds one folder per class")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"data.root={root} holds no class folder: put the images into {root}/<class>/")
    return folders


def count_class_folders(root: str | None) -> int:
    """Return the number of classes in ``root``; raises UserError as ``class_folders`` does."""
    return len(class_folders(root))


@dataclass(frozen=True)
class Folder:
    """Images ``root/<class>/**`` of any size, cropped to squares and decoded once into the cache.

    Label = place of the class folder among the sorted names. Files ending in png, jpg, jpeg, webp or bmp count, at any
    depth; hidden ones do not. ``unreadable`` says whether a broken file is skipped or fatal; ``held_out_fraction`` of
    every class, rounded, is held out; ``cache_dir`` None means the user's own cache folder. See ``crop.read_image`` for
    how pixels are made.
    """

    name: str
    root: str | None
    resolution: int
    channels: int
    classes: int
    unreadable: str
    held_out_fraction: float | int
    cache_dir: str | None

    def check(self) -> None:
        """Raise UserError for a setting or a folder that cannot work; reads names only."""
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: set data.channels to 3 (colour) or 1 (grey)")
        if self.resolution < 1:
            raise UserError(f"data.resolution={self.resolution}: set it to 1 or more")
        if self.unreadable not in POLICIES:
            raise UserError(f"data.unreadable={self.unreadable}: set it to {' or '.join(POLICIES)}")
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"data.held_out_fraction={self.held_out_fraction}: set it from 0 to below 1")
        folders = class_folders(self.root)
        if len(folders) != self.classes:
            raise UserError(
                f"data.classes={self.classes}, but {self.root} holds {len(folders)} class folders: leave it out"
            )
        for folder in folders:
            if next(images_below(folder), None) is None:
                raise UserError(f"class folder {folder} holds no image ({', '.join(ENDINGS)}): fill or remove it")
        cache_root(self.cache_dir)

    def train(self) -> ArrayDataset:
        """Return the training split, uint8 [N, channels, resolution, resolution], memory-mapped."""
        return self._rows(held_out=False)

    def held_out(self) -> ArrayDataset:
        """Return the split that training never sees; UserError if the held-out share of so few images is none."""
        return self._rows(held_out=True)

    def fingerprint(self) -> str:
        """Return hex digits of what determines images and split."""
        return digest(self._decoded_key, self.held_out_fraction)

    def _rows(self, held_out: bool) -> ArrayDataset:
        decoded = self._decoded
        border = int(torch.searchsorted(decoded.quantiles, self.held_out_fraction))
        rows = slice(0, border) if held_out else slice(border, None)
        if held_out and border == 0:
            raise UserError(f"data.held_out_fraction={self.held_out_fraction} of {self.root} is no image: raise it")
        return ArrayDataset(decoded.images[rows], decoded.labels[rows])

    @property
    def _root(self) -> Path:
        return Path(self.root or "").expanduser()

    @cached_property
    def _listing(self) -> list[tuple[int, str]]:
        """Every image as (label, path below the root), sorted."""
        self.check()
        return [
            (label, os.path.relpath(path, self._root))
            for label, folder in enumerate(class_folders(self.root))
            for path in sorted(images_below(folder))
        ]

    @cached_property
    def _decoded_key(self) -> str:
        """Key of the decoded images; the split is not part of it, as every split is a cut through the same order."""
        lines = []
        for label, name in self._listing:
            status = (self._root / name).stat()
            lines.append(f"{label} {name} {status.st_size} {status.st_mtime_ns}")
        return digest("folder", CROP_RULE, self.resolution, self.channels, "\n".join(lines))

    @cached_property
    def _decoded(self) -> Decoded:
        labels = torch.tensor([label for label, _ in self._listing])
        quantiles = class_quantiles(labels, "folder")
        order = quantiles.argsort(stable=True)
        wanted = Wanted(
            root=self._root,
            names=[self._listing[row][1] for row in order.tolist()],
            labels=labels[order],
            quantiles=quantiles[order],
            resolution=self.resolution,
            channels=self.channels,
        )
        fail = self.unreadable == "fail"
        decoded = open_decoded(cache_root(self.cache_dir) / f"folder-{self._decoded_key}", wanted, fail)
        self._judge(decoded, fail)
        return decoded

    def _judge(self, decoded: Decoded, fail: bool) -> None:
        """Say what could not be read, now or when the cache was made; refuse it if ``fail`` or if a class is empty."""
        bad = decoded.unreadable
        if bad and fail:
            raise cannot_read(self._root, bad[0])
        for label, folder in enumerate(class_folders(self.root)):
            if not (decoded.labels == label).any():
                raise UserError(f"class folder {folder} holds no readable image: repair or remove it")
        if bad:
            few = ", ".join(line.split("\t")[0] for line in bad[:3]) + (", ..." if len(bad) > 3 else "")
            warnings.warn(
                f"{len(bad)} of {len(self._listing)} images cannot be read and are skipped: {few} "
                f"(all named in {decoded.unreadable_file})",
                stacklevel=2,
            )


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the image files in ``folder`` at any depth, hidden ones left out, in no particular order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(parent, name)
