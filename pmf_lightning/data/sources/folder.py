"""Data source of the images in a folder or a zip."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pmf_lightning.data.dataset import ArrayDataset
from pmf_lightning.data.images.class_folders import ORDER, ImageTree, image_tree
from pmf_lightning.data.images.files import FolderFiles
from pmf_lightning.data.images.labels import check_rule
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.data.sources.decode_cache import Decoded, DecodeJob
from pmf_lightning.data.sources.decoding import DecodingSource
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Folder(DecodingSource):
    """Images ``root/<class>/**`` of any size, cropped to squares and decoded once into the cache.

    ``root`` is a folder, a zip, or a folder in a zip. ``label`` determines the labels (``class_folders.image_tree``):
    by default they follow the names of the class folders, and images without class folders are one class. Supported
    formats are Pillow's (see data/images/kinds.py), at any depth; hidden files are ignored. A fraction
    ``held_out_fraction`` of every class, rounded, is held out. See ``transforms.read_square`` for decoding and
    cropping, and ``DecodingSource`` for the other fields.
    """

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
        self.check_decoding()
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
        return self.open_images(f"folder-{self._decoded_key}", job, self._where)

    def _where(self, label: int) -> str:
        root, name = self._tree.root, self.class_names[label]
        return f"class folder {root / name}" if self.label == "auto" else f"class {name} of {root}"
