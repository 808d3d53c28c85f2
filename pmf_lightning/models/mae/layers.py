"""The layers of the masked autoencoder: convolutions, group norms, and images as a grid of patches.

Weights start as flax starts them by default: kernels and matrices from a normal law cut at two of its standard
deviations, of variance 1 / fan_in in the end; biases at zero, scales at one. All of them are Adam's.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Stream
from pmf_lightning.utils.precision import at_least_float32

Map = Float[Tensor, "_b _c _h _w"]  # sizes not tied to each other: most layers change some
EPS = 1e-6  # of every group norm; torch's own default is ten times larger
MOST_GROUPS = 32
_CUT_STD = 0.8796256610342398  # of the standard normal law cut at -2 and 2


def _lecun_(weight: Tensor, generator: torch.Generator) -> None:
    """Fill a kernel or matrix whose first axis is the fan-out; variance 1 / fan_in."""
    std = 1 / math.sqrt(weight[0].numel())
    bound = 2 * std / _CUT_STD
    nn.init.trunc_normal_(weight, std=std / _CUT_STD, a=-bound, b=bound, generator=generator)


class LecunConv(nn.Conv2d):
    """A convolution that keeps the size of its input (of odd kernels), or halves it with ``stride`` 2."""

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int = 1, bias: bool = False):
        super().__init__(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, bias=bias)

    def reset_parameters(self) -> None:
        """Leave the memory as it is: torch's own start would read the global random generator."""

    def init_weights(self, stream: Stream) -> None:
        """Fill kernel and bias."""
        _lecun_(self.weight, stream("weight"))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LecunLinear(nn.Linear):
    """A linear map with a bias."""

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def reset_parameters(self) -> None:
        """Leave the memory as it is: torch's own start would read the global random generator."""

    def init_weights(self, stream: Stream) -> None:
        """Fill matrix and bias."""
        _lecun_(self.weight, stream("weight"))
        nn.init.zeros_(self.bias)


class GroupNorm(nn.Module):
    """Each image's groups of channels to mean 0 and variance 1, then a scale and a bias per channel.

    ``groups`` None takes the largest divisor of ``channels`` that is at most 32. Inside in float32 or wider.
    """

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__()
        self.groups = groups or max(n for n in range(1, min(MOST_GROUPS, channels) + 1) if channels % n == 0)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def init_weights(self, stream: Stream) -> None:
        """Start at one and zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Map) -> Map:
        """Normalise; shape and dtype stay."""
        wide, weight, bias = (at_least_float32(value) for value in (x, self.weight, self.bias))
        return F.group_norm(wide, self.groups, weight, bias, EPS).to(x.dtype)


class ConvNormReLU(nn.Sequential):
    """A 3x3 convolution, a group norm and a ReLU."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(LecunConv(fan_in, fan_out, 3), GroupNorm(fan_out), nn.ReLU())


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Map:
    """Return images [B,C,H,W] as maps [B, patch*patch*C, H/patch, W/patch].

    The channels of a patch are in the order (row in the patch, column in the patch, colour).
    """
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, h, row, w, column]
    return cut.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def unpatchify(maps: Map, patch: int) -> Float[Tensor, "b c h w"]:
    """Undo ``patchify``."""
    cut = maps.unflatten(1, (patch, patch, -1))  # [B, row, column, C, h, w]
    return cut.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
