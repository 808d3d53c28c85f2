"""Layers of the masked autoencoder: convolutions, group norms and patchify.

Weights are initialised with flax's defaults. Kernels and matrices are from a normal distribution truncated at two
standard deviations, with final variance 1 / fan_in; biases are zero, scales one. All are optimised by Adam.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Conv, Stream
from pmf_lightning.utils.precision import at_least_float32

Map = Float[Tensor, "_b _c _h _w"]  # sizes are not bound to names, since most layers change some
EPS = 1e-6  # of every group norm; torch's default is ten times larger
MOST_GROUPS = 32
_CUT_STD = 0.8796256610342398  # std of the standard normal distribution truncated at -2 and 2


def lecun_(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Initialise a kernel or matrix, whose first axis is the fan-out, with variance 1 / fan_in."""
    std = 1 / math.sqrt(weight[0].numel())
    bound = 2 * std / _CUT_STD
    return nn.init.trunc_normal_(weight, std=std / _CUT_STD, a=-bound, b=bound, generator=generator)


def conv(fan_in: int, fan_out: int, kernel: int, stride: int = 1, bias: bool = False) -> Conv:
    """Build a convolution with "same" padding for odd kernels; ``stride`` 2 halves the size."""
    return Conv(fan_in, fan_out, kernel, lecun_, stride=stride, padding=kernel // 2, bias=bias)


class GroupNorm(nn.Module):
    """Group norm with a scale and a bias per channel, computed in float32 or wider.

    With ``groups`` None, the number of groups is the largest divisor of ``channels`` that is at most 32.
    """

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__()
        self.groups = groups or max(n for n in range(1, min(MOST_GROUPS, channels) + 1) if channels % n == 0)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def init_weights(self, stream: Stream) -> None:
        """Initialise scales with ones and biases with zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Map) -> Map:
        """Normalise; shape and dtype are unchanged."""
        wide, weight, bias = (at_least_float32(value) for value in (x, self.weight, self.bias))
        return F.group_norm(wide, self.groups, weight, bias, EPS).to(x.dtype)


class ConvNormReLU(nn.Sequential):
    """A 3x3 convolution, a group norm and a ReLU."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(conv(fan_in, fan_out, 3), GroupNorm(fan_out), nn.ReLU())


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Map:
    """Return images [B,C,H,W] as maps [B, patch*patch*C, H/patch, W/patch].

    The values of a patch are in the order (row in the patch, column in the patch, channel).
    """
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, h, row, w, column]
    return cut.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def unpatchify(maps: Map, patch: int) -> Float[Tensor, "b c h w"]:
    """Invert ``patchify``."""
    cut = maps.unflatten(1, (patch, patch, -1))  # [B, row, column, C, h, w]
    return cut.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
