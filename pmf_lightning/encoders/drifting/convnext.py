"""Drifting's features from ConvNeXt-V2 (arXiv 2301.00808, by ``timm``); pixel generators add them to the MAE's."""

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.encoders.drifting.mae import FeatureDict, Images, per_place, summaries
from pmf_lightning.encoders.perceptual.convnext import pretrained
from pmf_lightning.encoders.pretrained import three_channels
from pmf_lightning.utils.precision import at_least_float32

SIDE = 224  # pixels that the network sees
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of colours in [0, 1]
LOSS = "feature encoder"
REMEDY = "take drifting's features without ConvNeXt"


class ConvNeXtMaps(nn.Module):
    """A ConvNeXt-V2 whose four stages are looked at; frozen.

    ``network`` is timm's name (the paper's: convnextv2_base.fcmae_ft_in22k_in1k); ``weights`` the path of its state
    dict, or None for timm's own copy or download. Raises UserError where these are missing or others.
    """

    def __init__(self, network: str, weights: str | None):
        super().__init__()
        self.net = pretrained(network, weights, role=LOSS, instead=REMEDY)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ConvNeXtMaps":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Images) -> FeatureDict:
        """Return ``convnext_features``."""
        return convnext_features(self.net, images)


def convnext_features(net: timm.models.ConvNeXt, images: Images) -> FeatureDict:
    """Return the features of images [B,C,H,W] in [-1, 1], C = 1 or 3, each [B, locations, channels].

    For stage i = 0..3, its map normalised at every place over channels, (y - mean) / (deviation + 1e-3): all places of
    stages 1 to 3 as "convnext_stage_i", and mean and deviation over places of all four ("..._mean", "..._std");
    "convnext_global_mean", the network's last LayerNorm of the pooled raw map; "convnext_global_std", the deviation of
    the last normalised map (which equals "convnext_stage_3_std": the official code counts it twice, and so do we).
    timm's GRN adds its eps to the norm where the official code adds it to the square, a difference of about 1e-6.

    Raises ValueError for other channel counts.
    """
    x = _seen(three_channels(images, net.stem[0].weight))
    found: FeatureDict = {}
    x = net.stem(x)
    for i, stage in enumerate(net.stages):
        x = stage(x)
        found |= summaries(f"convnext_stage_{i}", per_place(x), "ab" if i else "b")
    last = len(net.stages) - 1
    found["convnext_global_mean"] = at_least_float32(net.head(x))[:, None]
    return found | {"convnext_global_std": found[f"convnext_stage_{last}_std"]}


def _seen(images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 side side"]:
    """Bring [-1, 1] to [0, 1], then to ImageNet's mean and deviation, then to 224 pixels; nothing is clipped.

    Bilinear with a kernel that is widened where the image gets smaller, as jax.image.resize does.
    """
    mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device) for values in (MEAN, STD))
    images = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
