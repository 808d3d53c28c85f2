"""The masked autoencoder of Drifting: encoder, decoder and classification head."""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.layers import Linear
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.layers import (
    MOST_GROUPS,
    ConvNormReLU,
    GroupNorm,
    Map,
    conv,
    lecun_,
    unpatchify,
)

SKIPS = ("layer3", "layer2", "layer1", "conv1")


class UpBlock(nn.Module):
    """Up block: resize to the skip's size, concatenate the skip, GN, and twice conv 3x3 - GN - ReLU."""

    def __init__(self, fan_in: int, skip: int, fan_out: int):
        super().__init__()
        self.norm = GroupNorm(fan_in + skip, groups=MOST_GROUPS)
        self.project = ConvNormReLU(fan_in + skip, fan_out)
        self.refine = ConvNormReLU(fan_out, fan_out)

    def forward(self, x: Map, skip: Map) -> Map:
        """Return a map of the skip's size; resizing is bilinear with pixel centres, as jax.image.resize."""
        if x.shape[-2:] != skip.shape[-2:]:
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.refine(self.project(self.norm(torch.cat((x, skip), dim=1))))


class UNetDecoder(nn.Module):
    """U-Net decoder: convolution on stage 4, four up blocks with skips from stages 3, 2, 1 and conv1, 1x1 convolution.

    Raises ValueError unless ``base_channels`` is a multiple of 32, since the norms after the skips have 32 groups.
    """

    def __init__(self, base_channels: int, channels: int):
        super().__init__()
        if base_channels % MOST_GROUPS:
            fitting = max(1, round(base_channels / MOST_GROUPS)) * MOST_GROUPS
            raise ValueError(
                f"base_channels={base_channels}: the decoder normalises {3 * base_channels} and {2 * base_channels} "
                f"channels in {MOST_GROUPS} groups; take a multiple of {MOST_GROUPS}, such as {fitting} "
                "(an encoder without decoder takes any)"
            )
        b = base_channels
        self.bridge = ConvNormReLU(8 * b, 8 * b)
        sizes = [(8 * b, 4 * b, 4 * b), (4 * b, 2 * b, 2 * b), (2 * b, b, b), (b, b, b)]
        self.ups = nn.ModuleList(UpBlock(*size) for size in sizes)
        self.head = conv(b, channels, 1, bias=True)

    def forward(self, maps: Mapping[str, Map]) -> Map:
        """Map the encoder's outputs to ``channels`` values per patch."""
        x = self.bridge(maps["layer4"])
        for up, skip in zip(self.ups, SKIPS, strict=True):
            x = up(x, maps[skip])
        return self.head(x)


HEADS = ("image", "logits")


class MAE(nn.Module):
    """Masked autoencoder: maps masked images to reconstructions and class logits. The caller applies the mask.

    Args:
        resolution, channels, patch, base_channels, blocks: see MAEEncoder; base_channels is a multiple of 32.
        classes: number of logits, computed from the spatial mean of the last stage.

    Raises ValueError for incompatible sizes. Source: arXiv 2602.04770, appendix and official code.
    """

    def __init__(
        self, *, resolution: int, channels: int, patch: int, base_channels: int, blocks: Sequence[int], classes: int
    ):
        super().__init__()
        self.resolution, self.channels, self.patch, self.classes = resolution, channels, patch, classes
        self.encoder = MAEEncoder(
            resolution=resolution, channels=channels, patch=patch, base_channels=base_channels, blocks=blocks
        )
        self.grid = self.encoder.grid
        self.decoder = UNetDecoder(base_channels, channels * patch**2)
        self.head = Linear(8 * base_channels, classes, lecun_, kind="adam")

    def forward(
        self, image: Float[Tensor, "b c h w"], heads: Collection[str] = HEADS
    ) -> dict[str, Float[Tensor, "b ..."]]:
        """Return "image" [B,C,H,W] and "logits" [B, classes]; only those in ``heads`` are computed."""
        maps = self.encoder(image)
        found: dict[str, Tensor] = {}
        if "image" in heads:
            found["image"] = unpatchify(self.decoder(maps), self.patch)
        if "logits" in heads:
            found["logits"] = self.head(maps["layer4"].mean((2, 3)))
        return found
