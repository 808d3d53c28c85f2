"""Frozen feature networks of the drifting loss."""

from torch import nn

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.drifting.mae import (
    EVERY_BLOCK,
    SETS,
    FeatureDict,
    Images,
    check_images,
    check_sets,
    mae_features,
)
from pmf_lightning.models.mae.encoder import MAEEncoder
from pmf_lightning.objectives.drifting import pixel_features
from pmf_lightning.utils.errors import UserError


class DriftFeatures(Encoder):
    """Features of images [B,C,H,W] in [-1, 1] (or latents) by name, each [B, locations, channels].

    ``encoder`` adds the features of an MAE, ``convnext`` those of another network (ConvNeXtMaps, TimmMaps or
    ClassifierMaps); without an encoder the pixels are used, as one vector. Calling it is ``encode``.

    Raises ValueError for unknown ``sets`` (see mae.py) or ``every_block`` below 1.
    """

    def __init__(
        self,
        encoder: MAEEncoder | None = None,
        convnext: nn.Module | None = None,
        sets: str = SETS,
        every_block: int = EVERY_BLOCK,
    ):
        super().__init__()
        check_sets(sets)
        if every_block < 1:
            raise ValueError(f"every_block={every_block}: set it to 1 (every block) or more (2: every second block)")
        self.encoder, self.convnext, self.sets, self.every_block = encoder, convnext, sets, every_block
        self.freeze()

    def check(self, channels: int, resolution: int) -> None:
        """Raise UserError, before any long work, unless these networks support such images."""
        if self.convnext is not None and channels not in (1, 3):
            raise UserError(
                f"data.channels={channels}: {type(self.convnext).__name__} takes images of 1 or 3 channels; take "
                "drifting's features without it"
            )
        if self.encoder is not None:
            try:
                check_images(self.encoder, channels, resolution, resolution)
            except ValueError as error:
                raise UserError(str(error)) from error

    def encode(self, images: Images) -> FeatureDict:
        """Return the features of images."""
        if self.encoder is None:
            found = pixel_features(images)
        else:
            found = mae_features(self.encoder, images, self.sets, self.every_block)
        return found if self.convnext is None else found | self.convnext(images)

    def forward(self, images: Images) -> FeatureDict:
        """Return the features of images."""
        return self.encode(images)
