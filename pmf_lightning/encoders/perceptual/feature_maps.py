"""Perceptual distance in the feature maps of a convolutional network of ``timm``."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from pmf_lightning.encoders.battery.timm_member import TimmMember
from pmf_lightning.encoders.pretrained import Distances, FrozenDistance, Square
from pmf_lightning.utils.precision import at_least_float32


class MapDistance(FrozenDistance):
    """LPIPS (arXiv 1801.03924, eq. 1) without its calibration: all channels have weight 1.

    The maps are those of ``encoder`` at every stride. At each place the features are normalised to unit length; squared
    differences are summed over channels, averaged over places and summed over maps. So 0 <= distance <= 4 x maps.

    ``side`` is the size of the crops in pixels; the encoder resizes them if its own differs.
    """

    def __init__(self, encoder: TimmMember, side: int):
        super().__init__(side)
        self.encoder = encoder
        self.freeze()

    def encode(self, images: Square) -> dict[str, Tensor]:
        """Return the features of every map, normalised to unit length, [n, channels, height, width] each."""
        maps = self.encoder.maps(images)
        return {f"map{i}": functional.normalize(at_least_float32(x), dim=1, eps=1e-10) for i, x in enumerate(maps)}

    def compare(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Distances:
        """Return the distance of each pair, [n]."""
        return sum((ours[name] - theirs[name]).square().sum(1).mean((1, 2)) for name in ours)
