"""Drifting's features in a convolutional network of ``timm``: summaries of its feature maps."""

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.drifting.mae import FeatureDict, Images, per_place, summaries

PLACES = 196  # of a map, at most, whose places are features: 14 x 14


class TimmMaps(Encoder):
    """Summaries of the maps of ``encoder`` at every stride, as those of ConvNeXt in Drifting's official code.

    Each map is normalised over channels at every place, (y - mean) / (deviation + 1e-3). The features of map i are its
    mean and deviation over places ("map_i_mean", "map_i_std") and, if it has at most 196, all places ("map_i").
    """

    channels = (1, 3)

    def __init__(self, encoder: TimmMember):
        super().__init__()
        self.encoder = encoder
        self.freeze()

    def encode(self, images: Images) -> FeatureDict:
        """Return the features of images [B,C,H,W] in [-1, 1], C = 1 or 3, each [B, locations, channels]."""
        found: FeatureDict = {}
        for i, x in enumerate(self.encoder.maps(images)):
            found |= summaries(f"map_{i}", per_place(x), "ab" if x[0, 0].numel() <= PLACES else "b")
        return found

    def forward(self, images: Images) -> FeatureDict:
        """Return ``encode(images)``."""
        return self.encode(images)
