"""Data source of shapes: coloured discs, squares, stars and others, rendered on access at any resolution.

It is meant for studies and for use without ImageNet. Nothing is stored or downloaded, image i is the same scene at
every resolution, and the dimension of the set of images is known (scenes.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from pmf_lightning.data.dataset import BatchDataset, DataSourceBase
from pmf_lightning.data.sources.shapes.outlines import OUTLINES
from pmf_lightning.data.sources.shapes.painting import paint
from pmf_lightning.data.sources.shapes.scenes import Scenes, sample_scenes
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError

VERSION = 2  # part of cache keys: increment it when images change
SMALLEST_SIDE = 16  # pixels; shapes are hard to distinguish below this


@dataclass(frozen=True)
class Shapes(DataSourceBase):
    """``images`` training images and ``held_out_images`` others, cycling over the first ``classes`` of ten shapes.

    Image i of a split depends only on (name, split, i). Another ``name`` gives other images, and a larger set begins
    with the images of a smaller one. Classes: disc, square, triangle, star, ring, cross, crescent, heart, pentagon,
    drop.
    """

    name: str
    resolution: int
    channels: int
    classes: int
    images: int
    held_out_images: int

    costly_to_read: ClassVar[bool] = True

    @property
    def class_names(self) -> list[str]:
        """Return the names of the shapes, in the order of the labels."""
        return [outline.name for outline in OUTLINES[: self.classes]]

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        if self.channels != 3:
            raise UserError(f"data.channels={self.channels}: shapes are coloured, set data.channels=3")
        if self.resolution < SMALLEST_SIDE:
            raise UserError(
                f"data.resolution={self.resolution}: shapes need more pixels, set it to {SMALLEST_SIDE} or more"
            )
        if not 1 <= self.classes <= len(OUTLINES):
            raise UserError(f"data.classes={self.classes}: set it between 1 and {len(OUTLINES)}")
        for key in ("images", "held_out_images"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)}: set it to 1 or more")

    def train(self) -> "PaintedShapes":
        """Return the training split, uint8 [3, resolution, resolution] each."""
        return self._split("train")

    def held_out(self) -> "PaintedShapes":
        """Return the split that is not used in training."""
        return self._split("held_out")

    def scenes(self, split: str, indices: Sequence[int]) -> Scenes:
        """Return the scene parameters of images of the split "train" or "held_out"."""
        return sample_scenes(self.name, split, indices, self.classes)

    def fingerprint(self) -> str:
        """Return a hex digest of the settings that determine images and split."""
        sizes = (self.resolution, self.classes, self.images, self.held_out_images)
        return digest("shapes", VERSION, self.name, *sizes)

    def _split(self, split: str) -> "PaintedShapes":
        self.check()
        return PaintedShapes(self, split, self.images if split == "train" else self.held_out_images)


class PaintedShapes(BatchDataset):
    """The images of one split of ``source``, rendered on access without caching."""

    def __init__(self, source: Shapes, split: str, count: int) -> None:
        self.source, self.split, self.count = source, split, count

    def __len__(self) -> int:
        return self.count

    @cached_property
    def labels(self) -> Int64[Tensor, " n"]:
        """Labels, cycling over the classes."""
        return torch.arange(self.count) % self.source.classes

    def batch(self, indices: Sequence[int]) -> tuple[UInt8[Tensor, "b 3 side side"], Int64[Tensor, " b"]]:
        """Render images [B, 3, side, side] and return them with labels [B]; IndexError for an invalid index."""
        for i in indices:
            if not 0 <= i < self.count:
                raise IndexError(f"image {i} of {self.count}")
        scenes = self.source.scenes(self.split, indices)
        return paint(scenes, self.source.resolution), scenes.classes
