"""Scene parameters of shapes images: position, size, rotation and colours.

Every scene is a point of the unit cube, sampled by key. Images of a class differ only in these parameters, so their
number is the dimension of the set of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pmf_lightning.data.sources.shapes.outlines import OUTLINES
from pmf_lightning.utils import rng

NUMBERS = ("x", "y", "size", "hue", "ground", "light", "angle")  # angle: only without full rotational symmetry
SMALLEST, LARGEST = 0.2, 0.36  # range of the size, the radius of the enclosing circle, as a fraction of the image side


@dataclass(frozen=True)
class Scenes:
    """``n`` scenes: ``classes`` int64 [n] and parameters ``unit`` in [0, 1), float64 [n,7], named by NUMBERS.

    x and y are the position (at 0 and 1 the shape touches a side), size its size, hue its colour. ground is the hue of
    the background, light the direction in which it becomes lighter. angle is the rotation, as a fraction of the
    symmetry angle. Hue, ground, light and angle are cyclic. The angle of discs and rings is 0.
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
        """Return a parameter by name."""
        return self.unit[:, NUMBERS.index(name)]

    def rows(self, chosen: Tensor | slice) -> "Scenes":
        """Return the scenes of the chosen rows."""
        return Scenes(self.classes[chosen], self.unit[chosen])


def sample_scenes(name: str, split: str, indices: Sequence[int], classes: int) -> Scenes:
    """Sample the scenes ``indices`` of a split; scene i has class i % classes and depends only on (name, split, i)."""
    labels = torch.tensor([i % classes for i in indices], dtype=torch.int64)
    unit = [rng.hashed_uniform(name, split, i, count=len(NUMBERS)) for i in indices]
    unit = torch.stack(unit) if unit else torch.empty(0, len(NUMBERS), dtype=torch.float64)
    turned = torch.tensor([bool(outline.symmetry) for outline in OUTLINES])[labels]
    unit[:, NUMBERS.index("angle")] *= turned
    return Scenes(labels, unit)
