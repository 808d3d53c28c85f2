"""Patch embedding and its inverse: images to tokens, and tokens to images."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Stream, Tokens


def check_grid(resolution: int, patch: int) -> None:
    """Raise ValueError unless the resolution is divisible by the patch size."""
    if resolution % patch:
        raise ValueError(f"resolution {resolution} is not divisible by patch {patch}")


def check_heads(width: int, attention_heads: int) -> None:
    """Raise ValueError unless the width splits into heads of a multiple of 4 channels, for two-dimensional RoPE."""
    if width % attention_heads or (width // attention_heads) % 4:
        raise ValueError(f"width {width} does not split into {attention_heads} heads of a multiple of 4 channels")


def tokens_to_image(x: Float[Tensor, "b n d"], grid: int, patch: int, channels: int) -> Float[Tensor, "b c h w"]:
    """Unpatchify grid x grid tokens in raster order; the values of a token are in the order (row, column, channel)."""
    x = x.reshape(len(x), grid, grid, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Conv(nn.Conv2d):
    """Patch convolution (stride = kernel), optimised by Adam.

    The weight is initialised xavier-uniform as the matrix [fan_in p p, fan_out], the bias with zeros.
    """

    optim_kinds = {"weight": "adam", "bias": "adam"}

    def reset_parameters(self) -> None:
        """Do nothing, since torch's initialisation would use the global random generator."""

    def init_weights(self, stream: Stream) -> None:
        """Initialise weight and bias.

        torch's xavier_uniform_ would include p*p in the fan-out too and give weights 6 times smaller.
        """
        fan_out, *fan_in = self.weight.shape
        bound = math.sqrt(6.0 / (fan_out + math.prod(fan_in)))
        nn.init.uniform_(self.weight, -bound, bound, generator=stream("weight"))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PatchEmbedding(nn.Module):
    """Patch embedding: a p x p convolution to ``bottleneck`` channels and a 1 x 1 to the width; or one convolution."""

    def __init__(self, channels: int, patch: int, width: int, bottleneck: int | None, patch_bias: bool = True):
        super().__init__()
        self.patches = Conv(channels, bottleneck or width, kernel_size=patch, stride=patch, bias=patch_bias)
        self.expand = Conv(bottleneck, width, kernel_size=1) if bottleneck else nn.Identity()

    def forward(self, image: Float[Tensor, "b c h w"]) -> Tokens:
        """Return the tokens in raster order."""
        return self.expand(self.patches(image)).flatten(2).transpose(1, 2)
