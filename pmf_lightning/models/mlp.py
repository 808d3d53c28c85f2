"""A multilayer perceptron as backbone, for the toy experiments of the papers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Linear, fan_in_normal

CLASSES = 0  # unconditional: the label 0 means none


class MLP(nn.Module):
    """MLP with ReLU from an image and scalar conditions to one field per head.

    Args:
        channels, resolution: the image is channels x resolution x resolution; vectors of D numbers are D x 1 x 1.
        width: of every hidden layer; depth: number of linear layers, at least 2.
        scalars: the conditions used, appended to the flattened image; others are ignored.
        heads: names of the fields; the heads share all layers but the last.

    Weights are initialised as in He et al. 2015, N(0, 2 / fan_in), the last layer with half that variance. Raises
    ValueError for a depth below 2.
    """

    def __init__(
        self, *, channels: int, resolution: int, width: int, depth: int, scalars: Sequence[str], heads: Sequence[str]
    ):
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth {depth}: an MLP has at least 2 layers")
        self.channels, self.resolution, self.classes = channels, resolution, CLASSES
        self.scalars = tuple(scalars)
        size = channels * resolution**2
        widths = [size + len(self.scalars)] + [width] * (depth - 1)
        self.hidden = nn.ModuleList(Linear(a, b, fan_in_normal(math.sqrt(2))) for a, b in pairwise(widths))
        self.heads = nn.ModuleDict({name: Linear(width, size, fan_in_normal(1.0)) for name in heads})

    def forward(
        self,
        image: Float[Tensor, "b c h w"],
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Float[Tensor, "b c h w"]]:
        """Return the field of every requested head (all by default); ``attention`` is ignored."""
        x = torch.cat((image.flatten(1), *(conditions[name].unsqueeze(1) for name in self.scalars)), dim=1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        shape = (self.channels, self.resolution, self.resolution)
        return {name: self.heads[name](x).unflatten(1, shape) for name in (heads or self.heads)}
