"""Data source of scikit-learn's handwritten digits: 1,797 real images, no download."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.split import class_quantiles
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError

IMAGES, SIDE, INK = 1797, 8, 16  # images, their side in pixels, their highest value


@dataclass(frozen=True)
class Digits(DataSourceBase):
    """Digits 0..9 in white on black, enlarged from 8x8 by bicubic interpolation.

    The originals are scans of real handwriting, which the authors reduced to 8x8 pixels of 17 levels (UCI Optical
    Recognition of Handwritten Digits, test part). The first ``held_out_images`` of a fixed stratified order are held
    out.
    """

    name: str
    resolution: int
    channels: int
    classes: int
    held_out_images: int

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: digits are grey, set data.channels to 1 or 3")
        if self.resolution < SIDE:
            raise UserError(f"data.resolution={self.resolution}: digits are only enlarged, set it to {SIDE} or more")
        if self.classes != 10:
            raise UserError(f"data.classes={self.classes}: there are ten digits, set data.classes=10")
        if not 0 < self.held_out_images < IMAGES:
            raise UserError(f"data.held_out_images={self.held_out_images}: set it between 1 and {IMAGES - 1}")

    def train(self) -> ArrayDataset:
        """Return the training split, uint8 [N, channels, resolution, resolution]."""
        return self._rows(slice(self.held_out_images, None))

    def held_out(self) -> ArrayDataset:
        """Return the split that is not used in training."""
        return self._rows(slice(0, self.held_out_images))

    def fingerprint(self) -> str:
        """Return a hex digest of the settings that determine images and split."""
        return digest("digits, bicubic", self.resolution, self.channels, self.held_out_images)

    def _rows(self, rows: slice) -> ArrayDataset:
        self.check()
        images, labels = _originals()
        chosen = class_quantiles(labels, "digits").argsort(stable=True)[rows]
        enlarged = [_enlarge(part, self.resolution) for part in images[chosen].split(128)]
        return ArrayDataset(torch.cat(enlarged).repeat(1, self.channels, 1, 1), labels[chosen])


def _originals() -> tuple[UInt8[Tensor, "n 1 8 8"], Int64[Tensor, " n"]]:
    from sklearn.datasets import load_digits  # imported here, because it takes a second

    bunch = load_digits()
    order = bunch.target.argsort(kind="stable")  # by class, so that equal quantiles are in the order of the classes
    images = torch.from_numpy(bunch.images[order]).to(torch.uint8)[:, None]
    return images, torch.from_numpy(bunch.target[order]).long()


def _enlarge(images: UInt8[Tensor, "n 1 8 8"], side: int) -> UInt8[Tensor, "n 1 side side"]:
    levels = interpolate(images.double() * (255 / INK), size=(side, side), mode="bicubic", align_corners=False)
    return levels.clamp(0, 255).round().to(torch.uint8)  # cubic kernels overshoot at edges
