"""Recognise the family and sizes of official weights from their names and shapes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from pmf_lightning.weights.families import WeightFormat, preset


@dataclass(frozen=True)
class WeightsDescription:
    """Family and sizes of a set of official weights; a size is None if it cannot be determined.

    ``blocks`` counts the blocks on the path to u. ``side`` is that of images, in pixels (unknown from iMF's files).
    """

    family: WeightFormat
    width: int | None
    blocks: int | None
    patch: int | None
    channels: int | None
    side: int | None
    classes: int | None

    @property
    def model(self) -> str | None:
        """The name in the papers, such as pMF-B/16; None if no model has this width, depth and patch."""
        sizes = (self.width, self.blocks, self.patch)
        return next((name for name, known in self.family.models.items() if known == sizes), None)

    @property
    def preset(self) -> str | None:
        """The preset (``model=``) of these sizes, such as pmf_b16, or None."""
        return self.model and preset(self.model)

    def __str__(self) -> str:
        units = {"blocks": "blocks", "channels": "channels", "side": "pixels wide", "classes": "classes"}
        known = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "family"}
        parts = [
            f"{value} {units[name]}" if name in units else f"{name} {value}"
            for name, value in known.items()
            if value is not None
        ]
        return f"{self.model or self.family.name} ({', '.join(parts)})"

    def differs(self, other: "WeightsDescription") -> bool:
        """Whether the families differ, or a size that is known in both."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return any(a != b for a, b in pairs if a is not None and b is not None)


def look(family: WeightFormat, weights: Mapping[str, Tensor]) -> WeightsDescription:
    """Determine the sizes of official weights (names without the prefix ``net.``) from their shapes only."""

    def size(name: str, dimensions: int, axis: int) -> int | None:
        shape = weights[name].shape if name in weights else ()
        return shape[axis] if len(shape) == dimensions else None

    patch = size(family.patches, 4, 2)
    rows = size(family.table, 2, 0)
    return WeightsDescription(
        family=family,
        width=size(family.norm, 1, 0),
        blocks=sum(_blocks(weights, stack) for stack in family.stacks) or None,
        patch=patch,
        channels=size(family.patches, 4, 1),
        side=_side(weights, patch),
        classes=rows - 1 if rows else None,
    )


def _blocks(weights: Mapping[str, Tensor], stack: str) -> int:
    """Return the number of blocks from the last index, so that a missing weight in the middle does not change it."""
    found = (re.fullmatch(stack, name) for name in weights)
    return max((1 + int(match[1]) for match in found if match), default=0)


def _side(weights: Mapping[str, Tensor], patch: int | None) -> int | None:
    """Return the side of images from the position table: condition tokens, then a square of patches."""
    tokens = [value for name, value in weights.items() if re.fullmatch(r"\w+_tokens", name) and value.ndim > 1]
    if patch is None or "pos_embed" not in weights or weights["pos_embed"].ndim != 3:
        return None
    patches = weights["pos_embed"].shape[1] - sum(value.shape[-2] for value in tokens)
    grid = math.isqrt(max(patches, 0))
    return grid * patch if grid**2 == patches and grid else None
