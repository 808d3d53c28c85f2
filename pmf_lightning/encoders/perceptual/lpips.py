"""LPIPS (arXiv 1801.03924) in the features of VGG16, from the ``lpips`` package."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VGG16_Weights

from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.pretrained import Distances, FrozenDistance, PretrainedWeights, Square
from pmf_lightning.utils.precision import at_least_float32
from pmf_lightning.utils.tensor_files import load_tensors

_FILE = VGG16_Weights.IMAGENET1K_V1
VGG16 = PretrainedWeights("lpips", "torchvision's VGG16", f"{Path(_FILE.url).name} (published at {_FILE.url})")


class LPIPS(FrozenDistance):
    """LPIPS version 0.1 with the package's calibration, for images in [-1, 1], which the package scales.

    ``weights`` is the path of torchvision's VGG16 state dict, or None for torchvision's cache or download. Raises
    UserError if the weights are missing or do not fit.

    Networks and values are the package's. Features are normalised to unit length here, because the package's gradient
    is NaN at a place where all features are zero.
    """

    def __init__(self, weights: str | None, side: int):
        super().__init__(side)
        state = VGG16.read(weights) if weights else VGG16.fetch(_download)
        with torch.device("meta"), warnings.catch_warnings():  # uses no memory and no global random numbers
            warnings.filterwarnings("ignore", message=".*'?pretrained'?.*", category=UserWarning)
            warnings.filterwarnings("ignore", message="Arguments other than a weight enum", category=UserWarning)
            parts = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        VGG16.fill(_whole(parts.net), state, weights or _FILE.url)
        calibration = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        weights_of_lins = {name.removeprefix("lin"): value for name, value in load_tensors(calibration).items()}
        parts.lins.load_state_dict(weights_of_lins, assign=True)
        self.scale, self.net, self.linear = lpips.ScalingLayer(), parts.net, parts.lins
        self.freeze()

    def encode(self, images: Square) -> dict[str, Tensor]:
        """Return the features of five layers, normalised to unit length, [n, channels, height, width] each."""
        maps = self.net(self.scale(three_channels(images).to(self.scale.shift.dtype)))
        return {f"layer{i}": _unit(features) for i, features in enumerate(maps)}

    def compare(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Distances:
        """Return LPIPS of each pair, [n]."""
        differences = ((ours[name] - theirs[name]).square() for name in ours)
        maps = (linear(difference) for linear, difference in zip(self.linear, differences, strict=True))
        return sum(at_least_float32(weighted).mean((1, 2, 3)) for weighted in maps)


def _download() -> dict[str, Tensor]:
    return _FILE.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)


def _whole(net: nn.Module) -> nn.Module:
    """Return the layers of ``net``, which the package splits into slices, under torchvision's names."""
    vgg = nn.Module()
    vgg.features = nn.ModuleDict({i: layer for part in net.children() for i, layer in part.named_children()})
    return vgg


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(at_least_float32(features), dim=1, eps=1e-10)
