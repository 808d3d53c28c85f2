"""What all backbones share about patches: whether the sizes fit, and the way from tokens back to pixels."""

from jaxtyping import Float
from torch import Tensor


def check_grid(resolution: int, patch: int) -> None:
    """Raise ValueError unless the image is a whole number of patches."""
    if resolution % patch:
        raise ValueError(f"resolution {resolution} is not divisible by patch {patch}")


def check_heads(width: int, attention_heads: int) -> None:
    """Raise ValueError unless the width splits into heads that two-dimensional rotations can turn."""
    if width % attention_heads or (width // attention_heads) % 4:
        raise ValueError(f"width {width} does not split into {attention_heads} heads of a multiple of 4 channels")


def tokens_to_image(x: Float[Tensor, "b n d"], grid: int, patch: int, channels: int) -> Float[Tensor, "b c h w"]:
    """Lay out a raster of grid x grid tokens as pixels; the channels of one are in the order (row, column, colour)."""
    x = x.reshape(len(x), grid, grid, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
