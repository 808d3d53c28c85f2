"""A multilayer perceptron from noise to points of another dimension, initialised as torch initialises it."""

import math
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Linear, Stream


class PointNetwork(nn.Module):
    """MLP with ReLU from ``noise`` numbers to ``features``.

    Args:
        noise, features: numbers in, numbers out.
        width: of every hidden layer; depth: number of linear layers, at least 2.

    Raises ValueError for a depth below 2.
    """

    def __init__(self, *, noise: int, features: int, width: int, depth: int):
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth {depth}: an MLP has at least 2 layers")
        self.noise = noise
        widths = [noise] + [width] * (depth - 1) + [features]
        self.layers = nn.ModuleList(UniformLinear(a, b) for a, b in pairwise(widths))

    def forward(self, noise: Float[Tensor, "n z"]) -> Float[Tensor, "n d"]:
        """Return one point per row of noise."""
        *hidden, last = self.layers
        for layer in hidden:
            noise = torch.relu(layer(noise))
        return last(noise)


class UniformLinear(Linear):
    """Linear layer with torch's default initialisation: weight and bias uniform within 1 / sqrt(fan_in).

    Biases that are not 0 matter for noise of few dimensions: they put the kinks of the ReLUs away from the origin.
    """

    def __init__(self, fan_in: int, fan_out: int):
        bound = 1 / math.sqrt(fan_in)
        super().__init__(fan_in, fan_out, partial(nn.init.uniform_, a=-bound, b=bound))

    def init_weights(self, stream: Stream) -> None:
        """Initialise weight and bias."""
        self.init(self.weight, generator=stream("weight"))
        self.init(self.bias, generator=stream("bias"))
