"""The decoder of the masked autoencoder: from the deepest stage back to the grid of patches, with skips."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from pmf_lightning.models.mae.layers import MOST_GROUPS, Conv, ConvNormReLU, GroupNorm, Map

SKIPS = ("layer3", "layer2", "layer1", "conv1")


class UpBlock(nn.Module):
    """Resize to the skip's size, put the skip's channels behind, GN, and twice conv 3x3 - GN - ReLU."""

    def __init__(self, fan_in: int, skip: int, fan_out: int):
        super().__init__()
        self.norm = GroupNorm(fan_in + skip, groups=MOST_GROUPS)
        self.project = ConvNormReLU(fan_in + skip, fan_out)
        self.refine = ConvNormReLU(fan_out, fan_out)

    def forward(self, x: Map, skip: Map) -> Map:
        """Return a map of the skip's size; bilinear with pixel centres, as jax.image.resize."""
        if x.shape[-2:] != skip.shape[-2:]:
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.refine(self.project(self.norm(torch.cat((x, skip), dim=1))))


class UNetDecoder(nn.Module):
    """A convolution on stage 4, four up blocks, which take stages 3, 2, 1 and conv1 as skips, and a 1x1 convolution.

    Raises ValueError unless ``base_channels`` is a multiple of 32: the norms behind the skips have 32 groups.
    """

    def __init__(self, base_channels: int, channels: int):
        super().__init__()
        if base_channels % MOST_GROUPS:
            fitting = max(1, round(base_channels / MOST_GROUPS)) * MOST_GROUPS
            raise ValueError(
                f"base_channels={base_channels}: the decoder normalises {3 * base_channels} and {2 * base_channels} "
                f"channels in {MOST_GROUPS} groups; take a multiple of {MOST_GROUPS}, such as {fitting} "
                "(the encoder alone takes any)"
            )
        b = base_channels
        self.bridge = ConvNormReLU(8 * b, 8 * b)
        sizes = [(8 * b, 4 * b, 4 * b), (4 * b, 2 * b, 2 * b), (2 * b, b, b), (b, b, b)]
        self.ups = nn.ModuleList(UpBlock(*size) for size in sizes)
        self.head = Conv(b, channels, 1, bias=True)

    def forward(self, maps: Mapping[str, Map]) -> Map:
        """Map the encoder's outputs to ``channels`` numbers for every patch."""
        x = self.bridge(maps["layer4"])
        for up, skip in zip(self.ups, SKIPS, strict=True):
            x = up(x, maps[skip])
        return self.head(x)
