"""One random crop for both images of a pair, resized to the square that a perceptual distance looks at.

The law is that of pMF's official code: area and width / height are drawn independently, the sides are rounded to whole
pixels, and a side longer than the image is cut to it. Nothing is rejected and drawn again, so a box takes exactly four
numbers. (torchvision's RandomResizedCrop tries ten times instead and then takes the centre.)

A crop is a weighted sum of the pixels of the WHOLE image, as in that code: at the edges of a box the cubic kernel also
sees the pixels just outside, and only at the edges of the image is it cut and normalised. Cropping first and resizing
then would differ there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.fields import Image
from pmf_lightning.utils.precision import Number, at_least_float32, no_autocast

UNIFORMS = 4  # numbers that one box takes: area, width / height, place from the top, place from the left
Boxes = Float[Tensor, "b 4"]  # (top, left, height, width) as shares of the image's sides, inside [0, 1]


@dataclass(frozen=True)
class CropLaw:
    """The law of a box: ``area`` its least and largest share of the image, ``ratio`` those of width / height.

    The area is uniform, the ratio log-uniform. Raises ValueError for bounds that leave nothing to draw.
    """

    area: Sequence[Number]
    ratio: Sequence[Number]

    def __post_init__(self):
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"crop.area={list(self.area)}: give two shares of the image, 0 < least <= largest <= 1")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop.ratio={list(self.ratio)}: give two values of width / height, 0 < least <= largest")


def crop_boxes(uniforms: Float[Tensor, "b 4"], height: int, width: int, law: CropLaw) -> Boxes:
    """Return a box of whole pixels for every row of ``uniforms`` in [0, 1), as shares of ``height`` and ``width``."""
    area, shape, down, right = uniforms.unbind(1)
    pixels = height * width * (law.area[0] + area * (law.area[1] - law.area[0]))
    ratio = law.ratio[0] * (law.ratio[1] / law.ratio[0]) ** shape
    tall = (pixels / ratio).sqrt().round().clamp(1, height)
    wide = (pixels * ratio).sqrt().round().clamp(1, width)
    top, left = _place(down, height - tall), _place(right, width - wide)
    return torch.stack((top / height, left / width, tall / height, wide / width), dim=1)


def _place(uniform: Tensor, room: Tensor) -> Tensor:
    """Return one of the whole numbers 0 .. room, all equally likely."""
    return torch.minimum((uniform * (room + 1)).floor(), room)


def resized_crops(images: Image, boxes: Boxes, side: int) -> Float[Tensor, "b c side side"]:
    """Return the part of each image inside its box as ``side`` x ``side`` pixels, at least in float32.

    Cubic kernel (a = -1/2) of support 2, widened where the crop is made smaller so that nothing aliases: the numbers of
    jax.image.scale_and_translate(method="cubic"), and for a box of the whole image those of
    torch.nn.functional.interpolate(mode="bicubic", antialias=True). Differentiable in ``images``; the whole batch takes
    two batched matrix products. Boxes must lie inside the image.
    """
    height, width = images.shape[-2:]
    images = at_least_float32(images)
    top, left, tall, wide = boxes.to(images).unbind(1)
    with no_autocast(images):
        rows = _weights(top * height, tall * height, height, side)
        columns = _weights(left * width, wide * width, width, side)
        return rows[:, None] @ images @ columns[:, None].mT


def _weights(start: Tensor, extent: Tensor, size: int, side: int) -> Float[Tensor, "b side size"]:
    """Return what each of ``size`` pixels in a line gives to each of the ``side`` over [start, start + extent]."""
    step = (extent / side)[:, None]  # old pixels per new one
    centres = start[:, None] + step * (torch.arange(side, device=start.device) + 0.5)
    offsets = centres[:, :, None] - (torch.arange(size, device=start.device) + 0.5)
    weights = _cubic(offsets.abs() / step.clamp_min(1)[:, :, None])
    return weights / weights.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2 at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
