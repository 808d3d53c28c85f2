"""Drifting's ConvNeXt-V2 features (arXiv 2301.00808, from ``timm``), which pixel generators add to the MAE's."""

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.encoders.base import Encoder, three_channels
from pmf_lightning.encoders.drifting.mae import FeatureDict, Images, per_place, summaries
from pmf_lightning.encoders.perceptual.convnext import pretrained
from pmf_lightning.utils.precision import at_least_float32

SIDE = 224  # input size of the network in pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for colours in [0, 1]
LOSS = "feature encoder"
REMEDY = "take drifting's features without ConvNeXt"


class ConvNeXtMaps(Encoder):
    """Frozen ConvNeXt-V2 that returns features of its four stages.

    ``network`` is timm's name (the paper's is convnextv2_base.fcmae_ft_in22k_in1k). ``weights`` is the path of its
    state dict, or None for timm's cache or download. Raises UserError if the weights are missing or do not fit.
    """

    channels = (1, 3)

    def __init__(self, network: str, weights: str | None):
        super().__init__()
        self.net = pretrained(network, weights, role=LOSS, instead=REMEDY)
        self.freeze()

    def encode(self, images: Images) -> FeatureDict:
        """Return ``convnext_features``."""
        return convnext_features(self.net, images)

    def forward(self, images: Images) -> FeatureDict:
        """Return ``encode(images)``."""
        return self.encode(images)


def convnext_features(net: timm.models.ConvNeXt, images: Images) -> FeatureDict:
    """Return the features of images [B,C,H,W] in [-1, 1], C = 1 or 3, each [B, locations, channels].

    The map of stage i = 0..3 is normalised over channels at every place, (y - mean) / (deviation + 1e-3). The features
    are all places of stages 1 to 3 ("convnext_stage_i"); mean and deviation over places of all four stages ("..._mean",
    "..._std"); "convnext_global_mean", the network's last LayerNorm of the pooled raw map; and "convnext_global_std",
    the deviation of the last normalised map. The last one equals "convnext_stage_3_std": the official code counts it
    twice, and so do we. timm's GRN adds eps to the norm, the official code to the square: they differ by about 1e-6.

    Raises ValueError for other numbers of channels.
    """
    x = _seen(three_channels(images).to(net.stem[0].weight.dtype))
    found: FeatureDict = {}
    x = net.stem(x)
    for i, stage in enumerate(net.stages):
        x = stage(x)
        found |= summaries(f"convnext_stage_{i}", per_place(x), "ab" if i else "b")
    last = len(net.stages) - 1
    found["convnext_global_mean"] = at_least_float32(net.head(x))[:, None]
    return found | {"convnext_global_std": found[f"convnext_stage_{last}_std"]}


def _seen(images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 side side"]:
    """Scale [-1, 1] to [0, 1], normalise by ImageNet's mean and deviation, resize to 224 pixels; no clipping.

    The resize is bilinear with antialiasing when downsampling, like jax.image.resize.
    """
    mean, std = torch.tensor((MEAN, STD), dtype=images.dtype)[..., None, None].to(images.device, non_blocking=True)
    images = ((images + 1) / 2 - mean) / std
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
