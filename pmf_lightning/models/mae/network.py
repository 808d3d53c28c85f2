"""The masked autoencoder that drifting's features come from: encoder, decoder and a classifier's head."""

from collections.abc import Collection, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.models.mae.decoder import UNetDecoder
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.models.mae.layers import Dense, unpatchify

HEADS = ("image", "logits")


class MAE(nn.Module):
    """Images with holes in, whole images and class logits out; which pixels are hidden is the caller's affair.

    Args:
        resolution, channels, patch, base_channels, blocks: see MAEEncoder; base_channels is a multiple of 32.
        classes: the logits, of the spatial mean of the last stage.

    Raises ValueError where the sizes do not fit each other. Source: arXiv 2602.04770, appendix and official code.
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
        self.head = Dense(8 * base_channels, classes)

    def forward(
        self, image: Float[Tensor, "b c h w"], heads: Collection[str] = HEADS
    ) -> dict[str, Float[Tensor, "b ..."]]:
        """Return "image" [B,C,H,W] and "logits" [B, classes], of which only those in ``heads`` are computed."""
        maps = self.encoder(image)
        found: dict[str, Tensor] = {}
        if "image" in heads:
            found["image"] = unpatchify(self.decoder(maps), self.patch)
        if "logits" in heads:
            found["logits"] = self.head(maps["layer4"].mean((2, 3)))
        return found
