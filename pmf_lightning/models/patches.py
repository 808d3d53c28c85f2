"""Patch embedding, its inverse, and the base class of the transformers over patches."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import AttentionKind, Conv, Tokens, xavier_
from pmf_lightning.utils.precision import Number


def check_grid(resolution: int, patch: int) -> None:
    """Raise ValueError unless the resolution is divisible by the patch size."""
    if resolution % patch:
        raise ValueError(f"resolution {resolution} is not divisible by patch {patch}")


def tokens_to_image(x: Float[Tensor, "b n d"], grid: int, patch: int, channels: int) -> Float[Tensor, "b c h w"]:
    """Unpatchify grid x grid tokens in raster order; the values of a token are in the order (row, column, channel)."""
    # Not len(x), which would fix the size of the batch in an export.
    x = x.reshape(x.shape[0], grid, grid, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class PatchEmbedding(nn.Module):
    """Patch embedding: a p x p convolution to ``bottleneck`` channels and a 1 x 1 to the width; or one convolution."""

    def __init__(self, channels: int, patch: int, width: int, bottleneck: int | None, patch_bias: bool = True):
        super().__init__()
        self.patches = Conv(channels, bottleneck or width, patch, xavier_, stride=patch, bias=patch_bias)
        self.expand = Conv(bottleneck, width, 1, xavier_) if bottleneck else nn.Identity()

    def forward(self, image: Float[Tensor, "b c h w"]) -> Tokens:
        """Return the tokens in raster order."""
        return self.expand(self.patches(image)).flatten(2).transpose(1, 2)


class PatchTransformer(nn.Module):
    """Base class of the vision transformers: sizes of the image, of its patches and of the heads, number of tokens.

    Args:
        resolution, channels, patch: the image is channels x resolution x resolution, split into patch x patch pixels.
        width, num_heads: channels of a token, and attention heads of a block.
        classes: number of labels.
        prefix: number of tokens in front of the patches.
        rope_theta: base of the rotary frequencies.
        attention: default of ``forward``, "plain" or "fused".

    Raises ValueError for incompatible sizes.
    """

    head_multiple: ClassVar[int] = 4  # the channels of a head are a multiple; two-dimensional RoPE needs 4

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        patch: int,
        width: int,
        num_heads: int,
        classes: int,
        prefix: int,
        rope_theta: Number,
        attention: AttentionKind,
    ):
        super().__init__()
        check_grid(resolution, patch)
        if width % (self.head_multiple * num_heads):
            raise ValueError(
                f"width {width} does not split into {num_heads} heads of a multiple of {self.head_multiple} channels"
            )
        self.resolution, self.channels, self.patch, self.classes = resolution, channels, patch, classes
        self.width, self.grid, self.head_dim = width, resolution // patch, width // num_heads
        self.prefix, self.rope_theta, self.attention = prefix, rope_theta, attention

    @property
    def tokens(self) -> int:
        """Number of tokens in front of the patches and of patches, in the last block."""
        return self.prefix + self.grid**2
