"""Perceptual distance in the pooled features of ConvNeXt-V2 (arXiv 2301.00808), from ``timm``."""

from collections.abc import Mapping

import timm
import torch
from timm.models import load_state_dict_from_hf
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn

from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.pretrained import Distances, FrozenDistance, PretrainedWeights, Square
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.precision import at_least_float32

FILE = "model.safetensors"


class ConvNeXtFeatures(FrozenDistance):
    """Sum of squared differences of the features after global average pooling and the last LayerNorm, without a head.

    Images in [-1, 1] are not normalised to ImageNet's mean and deviation, as in pMF's official code. ``network`` is
    timm's name of a ConvNeXt. ``weights`` is the path of its state dict (timm's file, or that of the original release),
    or None for timm's cache or download. Raises UserError if the weights are missing or do not fit.
    """

    def __init__(self, network: str, weights: str | None, side: int):
        super().__init__(side)
        self.net = pretrained(network, weights)
        self.freeze()

    def encode(self, images: Square) -> dict[str, Tensor]:
        """Return "pooled", [n, channels]."""
        like = next(self.parameters())
        return {"pooled": at_least_float32(self.net(three_channels(images).to(like.dtype)))}

    def compare(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Distances:
        """Return the squared distance of each pair, [n]."""
        return (ours["pooled"] - theirs["pooled"]).square().sum(1)


def pretrained(network: str, weights: str | None, **purpose: str) -> nn.Module:
    """Return timm's ``network`` without its classifier, with weights from a file or timm's cache or download.

    ``purpose`` may set ``role`` and ``instead`` of PretrainedWeights. Raises UserError if the weights are missing or do
    not fit.
    """
    published = _published(network, purpose)
    state = published.read(weights) if weights else published.fetch(lambda: _download(network))
    with torch.device("meta"):  # uses no memory and no global random numbers
        net = timm.create_model(network, num_classes=0)
    published.fill(net, _in_timms_names(state, net), weights or network)
    return net


def _download(network: str) -> dict[str, Tensor]:
    return load_state_dict_from_hf(timm.get_pretrained_cfg(network).hf_hub_id, FILE)


def _published(network: str, purpose: Mapping[str, str]) -> PretrainedWeights:
    try:
        home = timm.get_pretrained_cfg(network)
    except RuntimeError:
        home = None
    if home is None or home.hf_hub_id is None:
        known = timm.list_models("convnext*", pretrained=True)
        raise UserError(
            f"features.convnext.network={network}: timm has no weights of that name; {suggestions(network, known)}"
        )
    return PretrainedWeights("convnext", f"timm's {network}", f"{FILE} (published as {home.hf_hub_id})", **purpose)


def _in_timms_names(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Rename the weights of the original release to timm's names; other weights are unchanged and will not fit."""
    try:
        return checkpoint_filter_fn(state, network)
    except KeyError:
        return state
