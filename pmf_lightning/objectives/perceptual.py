"""Perceptual distances of a training step, computed on random crops of selected rows."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.objectives.base import Distance
from pmf_lightning.objectives.crops import resized_crops
from pmf_lightning.objectives.fields import Image, Time, image_from_velocity


def perceptual_distances(
    features: Mapping[str, Distance],
    z: Image,
    u: Image,
    t: Time,
    x: Image,
    boxes: Float[Tensor, "b 4"],
    rows: Int64[Tensor, " n"],
) -> dict[str, Float[Tensor, " b"]]:
    """Return every distance between X_u = z - t u and x for the rows ``rows``; the others have distance 0.

    Both images of a pair are cropped to the same box of ``boxes`` (top, left, height, width, as fractions of the image)
    and resized to the input size of the distance. X_u contains no division by the clipped t (pMF, official code).
    """
    found = {name: x.new_zeros(len(x)) for name in features}
    if not len(rows):
        return found
    generated, real, boxes = image_from_velocity(z, u, t)[rows], x[rows], boxes[rows]
    pairs: dict[int, tuple[Image, Image]] = {}  # distances with the same input size share the crops
    for name, distance in features.items():
        side = distance.side
        if side not in pairs:
            pairs[side] = resized_crops(generated, boxes, side), resized_crops(real, boxes, side)
        values = distance(*pairs[side])
        found[name] = torch.zeros(len(x), dtype=values.dtype, device=values.device).index_copy(0, rows, values)
    return found
