"""Random resized crops, shared by both images of a pair, for perceptual distances and augmentation.

The distribution is that of pMF's official code. Area and aspect ratio (width / height) are sampled independently, the
sides are rounded to integer pixels, and a side longer than the image is clipped to it. There is no rejection sampling,
so a box takes exactly four random numbers. (torchvision's RandomResizedCrop tries ten times and then takes the centre.)

A crop is a weighted sum of the pixels of the FULL image, as in that code. At the edges of a box the cubic kernel also
reads the pixels just outside; only at the edges of the image is it truncated and normalised. Cropping before resizing
would differ there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.fields import Image
from pmf_lightning.utils.precision import Number, at_least_float32, no_autocast

UNIFORMS = 4  # random numbers per box: area, width / height, top, left
Boxes = Float[Tensor, "b 4"]  # (top, left, height, width) as fractions of the image's sides, inside [0, 1]


@dataclass(frozen=True)
class CropLaw:
    """Distribution of crop boxes: ``area`` bounds the fraction of the image, ``ratio`` bounds width / height.

    The area is uniform, the ratio log-uniform. Raises ValueError for invalid bounds.
    """

    area: Sequence[Number]
    ratio: Sequence[Number]

    def __post_init__(self):
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"crop.area={list(self.area)}: give two shares of the image, 0 < least <= largest <= 1")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop.ratio={list(self.ratio)}: give two values of width / height, 0 < least <= largest")


def crop_boxes(uniforms: Float[Tensor, "b 4"], height: int, width: int, law: CropLaw) -> Boxes:
    """Return a box of integer pixels per row of ``uniforms`` in [0, 1), as fractions of ``height`` and ``width``."""
    area, shape, down, right = uniforms.unbind(1)
    pixels = height * width * (law.area[0] + area * (law.area[1] - law.area[0]))
    ratio = law.ratio[0] * (law.ratio[1] / law.ratio[0]) ** shape
    tall = (pixels / ratio).sqrt().round().clamp(1, height)
    wide = (pixels * ratio).sqrt().round().clamp(1, width)
    top, left = _place(down, height - tall), _place(right, width - wide)
    return torch.stack((top / height, left / width, tall / height, wide / width), dim=1)


def _place(uniform: Tensor, room: Tensor) -> Tensor:
    """Return an integer in 0 .. room, uniformly distributed."""
    return torch.minimum((uniform * (room + 1)).floor(), room)


def resized_crops(images: Image, boxes: Boxes, side: int) -> Float[Tensor, "b c side side"]:
    """Return the part of each image inside its box as ``side`` x ``side`` pixels, at least in float32.

    The kernel is cubic (a = -1/2) with support 2, widened against aliasing when the crop is downscaled. Results equal
    jax.image.scale_and_translate(method="cubic"), and for a box of the full image
    torch.nn.functional.interpolate(mode="bicubic", antialias=True). Differentiable in ``images``. The batch takes two
    batched matrix products. Boxes must be inside the image.
    """
    height, width = images.shape[-2:]
    images = at_least_float32(images)
    top, left, tall, wide = boxes.to(images).unbind(1)
    with no_autocast(images):
        rows = _weights(top * height, tall * height, height, side)
        columns = _weights(left * width, wide * width, width, side)
        return rows[:, None] @ images @ columns[:, None].mT


def _weights(start: Tensor, extent: Tensor, size: int, side: int) -> Float[Tensor, "b side size"]:
    """Return the weight of each of ``size`` input pixels in each of ``side`` output pixels on [start, start+extent]."""
    step = (extent / side)[:, None]  # input pixels per output pixel
    centres = start[:, None] + step * (torch.arange(side, device=start.device) + 0.5)
    offsets = centres[:, :, None] - (torch.arange(size, device=start.device) + 0.5)
    weights = _cubic(offsets.abs() / step.clamp_min(1)[:, :, None])
    return weights / weights.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' cubic kernel with a = -1/2 at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
