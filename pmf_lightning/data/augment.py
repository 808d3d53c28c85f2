"""Non-leaking augmentation of EDM (Karras et al. 2022, arXiv 2206.00364, appendix F.2 and table 6) for small data.

Images are mirrored, scaled, rotated, stretched and shifted at random. The network is told how, as a vector that is zero
for an image as it is, and samples are drawn with zero, so the augmentation does not appear in them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, no_autocast

Images = Float32[Tensor, "b c side side"]
Matrices = Float64[Tensor, "b 3 3"]
_NUMBERS = 15  # random numbers per image: 7 decisions and 8 values


@dataclass(frozen=True)
class Geometry:
    """The transformation of each image, in the letters of table 6; all 0: the image as it is.

    Args:
        mirror, overturn: a0 and a1; 1: left and right, or top and bottom, are exchanged.
        scale: a2, log2 of the factor in units of ``scale`` of the settings.
        angle: a3, in radians.
        axis, stretch: a4, in radians, and a5, log2 of the factor along that axis, in units of ``stretch``.
        shift: a6 and a7, right and down, in units of ``shift``.
    """

    mirror: Float64[Tensor, " b"]
    overturn: Float64[Tensor, " b"]
    scale: Float64[Tensor, " b"]
    angle: Float64[Tensor, " b"]
    axis: Float64[Tensor, " b"]
    stretch: Float64[Tensor, " b"]
    shift: Float64[Tensor, "b 2"]

    @property
    def vector(self) -> Float32[Tensor, "b 9"]:
        """What the network is told: the column "conditioning" of table 6."""
        turned = self.angle.cos() - 1, self.angle.sin()
        stretched = self.stretch * self.axis.cos(), self.stretch * self.axis.sin()
        parts = (self.mirror, self.overturn, self.scale, *turned, *stretched, *self.shift.unbind(1))
        return torch.stack(parts, 1).float()

    @property
    def warped(self) -> Bool[Tensor, " b"]:
        """The images of which pixels are interpolated; flips move whole pixels."""
        return (self.scale != 0) | (self.angle != 0) | (self.stretch != 0) | (self.shift != 0).any(1)


@dataclass(frozen=True)
class EDMAugment:
    """The augmentation pipeline of EDM; the values are in conf/augment/edm.yaml.

    Args:
        p: probability of each transformation but the horizontal flip (A_prob).
        x_flip: probability that the horizontal flip is tried; half of those images are mirrored.
        scale, stretch: log2 of the factor at one standard deviation (A_scale, A_aniso).
        turned_axes: share of the stretched images whose axis is random; the others are stretched across or down. The
            official code has 0.5, table 6 does not state it.
        shift: standard deviation of the shift as a share of the side (A_trans).

    Raises ValueError for shares outside [0, 1].
    """

    parameters: ClassVar = 9  # length of the vector

    p: Number
    x_flip: Number
    scale: Number
    stretch: Number
    turned_axes: Number
    shift: Number

    def __post_init__(self):
        for name in ("p", "x_flip", "turned_axes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a probability from 0 to 1")

    def __call__(
        self, images: Images, rows: Int64[Tensor, " b"], seed: int, step: int
    ) -> tuple[Images, Float32[Tensor, "b 9"]]:
        """Return augmented images [b,C,side,side] in [-1, 1], and the vector of each, on their device.

        The numbers of row r have the key (seed, "augment", step, r).
        """
        geometry = self.draw(rows, seed, step)
        return self.apply(images, geometry), geometry.vector.to(images.device, non_blocking=True)

    def draw(self, rows: Int64[Tensor, " b"], seed: int, step: int) -> Geometry:
        """Sample the transformations of the global ``rows`` of a step, on the CPU."""
        numbers = [rng.uniform(seed, "augment", step, row, count=_NUMBERS) for row in rows.tolist()]
        drawn = torch.stack(numbers) if numbers else torch.empty(0, _NUMBERS, dtype=torch.float64)
        tried, value = drawn.T.split((7, 8))
        normal = torch.special.ndtri(value.clamp_min(2.0**-54))
        turn = (2 * value - 1) * torch.pi
        done = tried < self.p
        return Geometry(
            mirror=((tried[0] < self.x_flip) & (value[0] < 0.5)).double(),
            overturn=(done[1] & (value[1] < 0.5)).double(),
            scale=torch.where(done[2], normal[2], 0.0),
            angle=torch.where(done[3], turn[3], 0.0),
            axis=torch.where(done[4] & (tried[5] < self.turned_axes), turn[5], 0.0),
            stretch=torch.where(done[4], normal[4], 0.0),
            shift=torch.where(done[6], normal[6:], 0.0).T,
        )

    def apply(self, images: Images, geometry: Geometry) -> Images:
        """Transform images: flips exactly, the rest by bicubic interpolation, clamped to [-1, 1].

        Beyond its edges an image continues as its mirror image. EDM's code resizes with wavelets in place of the
        bicubic kernel. Images that are not warped keep every bit.
        """
        for done, axis in ((geometry.mirror, -1), (geometry.overturn, -2)):
            chosen = (done != 0).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
            images = torch.where(chosen, images.flip(axis), images)
        rows = geometry.warped.nonzero().squeeze(1)
        if not len(rows):
            return images
        places = self.inverse(geometry)[rows, :2].float().to(images.device, non_blocking=True)
        rows = rows.to(images.device, non_blocking=True)
        with no_autocast(images):  # a grid in bfloat16 is wrong by up to a pixel
            grid = functional.affine_grid(places, [len(rows), *images.shape[1:]], align_corners=False)
            warped = functional.grid_sample(images[rows], grid, "bicubic", "reflection", align_corners=False)
        return images.index_copy(0, rows, warped.clamp(-1, 1))

    def inverse(self, geometry: Geometry) -> Matrices:
        """Return where each point of the new image was in the old one; x is right, y down, and the sides are at +-1.

        It is the inverse of shift, stretch, rotation and scaling, applied from right to left.
        """
        stretch = (self.stretch * geometry.stretch).exp2()
        factor = (self.scale * geometry.scale).exp2()
        return (
            _scaling(1 / factor, 1 / factor)
            @ _rotation(geometry.angle)
            @ _rotation(-geometry.axis)
            @ _scaling(1 / stretch, stretch)
            @ _rotation(geometry.axis)
            @ _shifting(-2 * self.shift * geometry.shift)
        )


def _matrices(*rows: tuple[Tensor | float, ...]) -> Matrices:
    like = next(value for row in rows for value in row if isinstance(value, Tensor))
    return torch.stack([torch.stack([torch.zeros_like(like) + value for value in row], -1) for row in rows], -2)


def _scaling(across: Tensor, down: Tensor) -> Matrices:
    return _matrices((across, 0.0, 0.0), (0.0, down, 0.0), (0.0, 0.0, 1.0))


def _rotation(angle: Tensor) -> Matrices:
    cos, sin = angle.cos(), angle.sin()
    return _matrices((cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0))


def _shifting(by: Float[Tensor, "b 2"]) -> Matrices:
    right, down = by.unbind(1)
    return _matrices((1.0, 0.0, right), (0.0, 1.0, down), (0.0, 0.0, 1.0))
