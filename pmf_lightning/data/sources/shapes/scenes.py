"""What a shapes image shows, as numbers: where, how large, how turned and in which colours. No pixels here.

Every scene is a point of the unit cube, drawn by key; these latent numbers are all that images of a class differ by, so
their count is the dimension of the set of its images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pmf_lightning.data.sources.shapes.outlines import OUTLINES
from pmf_lightning.utils import rng

NUMBERS = ("x", "y", "size", "hue", "ground", "light", "angle")  # the last is that of shapes that can be turned
SMALLEST, LARGEST = 0.2, 0.36  # size of a shape, the radius of the circle around it, in sides of the image


@dataclass(frozen=True)
class Scenes:
    """``n`` scenes: ``classes`` int64 [n] and their latent numbers ``unit`` in [0, 1), float64 [n,7], named NUMBERS.

    x and y place the shape (0 and 1: it touches a side), size enlarges it, hue colours it; ground is the hue of what
    lies behind, light the direction in which that grows lighter, angle how far the shape is turned, as a share of the
    angle after which it looks the same. Hue, ground, light and angle are cyclic. Discs and rings have no angle: theirs
    is 0.
    """

    classes: Int64[Tensor, " n"]
    unit: Float64[Tensor, "n 7"]

    def __post_init__(self):
        if len(self.classes) and not 0 <= self.classes.min() <= self.classes.max() < len(OUTLINES):
            raise ValueError(
                f"classes {self.classes.min()} to {self.classes.max()}: there are 0 to {len(OUTLINES) - 1}"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def number(self, name: str) -> Float64[Tensor, " n"]:
        """Return one of the latent numbers by its name."""
        return self.unit[:, NUMBERS.index(name)]

    def rows(self, chosen: Tensor | slice) -> "Scenes":
        """Return some of the scenes."""
        return Scenes(self.classes[chosen], self.unit[chosen])


def intrinsic_dimension(label: int) -> int:
    """Return how many numbers images of a class differ by: 6, or 7 of shapes that can be turned."""
    return len(NUMBERS) - (OUTLINES[label].symmetry == 0)


def sample_scenes(name: str, split: str, indices: Sequence[int], classes: int) -> Scenes:
    """Draw the scenes number ``indices`` of a split; scene i is of class i % classes and depends on the names and i."""
    labels = torch.tensor([i % classes for i in indices], dtype=torch.int64)
    unit = [rng.hashed_uniform(name, split, i, count=len(NUMBERS)) for i in indices]
    unit = torch.stack(unit) if unit else torch.empty(0, len(NUMBERS), dtype=torch.float64)
    turned = torch.tensor([bool(outline.symmetry) for outline in OUTLINES])[labels]
    unit[:, NUMBERS.index("angle")] *= turned
    return Scenes(labels, unit)
