"""Base class of the encoders of a battery: one vector per image, from images of any size."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Encoder, checksum
from pmf_lightning.utils.precision import Number, at_least_float32

Images = Float[Tensor, "n c h w"]
Vectors = Float[Tensor, "n d"]


class Member(Encoder):
    """A frozen encoder from images [n,C,H,W] in [-1, 1], of any size, to {"features": [n, width]}, float32 or wider.

    A subclass sets ``width`` and ``facts``, and implements ``vectors``. Gradients flow to the images. It resizes images
    by itself and never clamps or rounds them.

    Attributes:
        width: numbers per image.
        facts: settings that change the features and are not among the weights, such as input size and pooling.
    """

    channels = (1, 3)
    width: int
    facts: tuple[object, ...] = ()

    @classmethod
    def count(cls, settings: Mapping[str, Any], source: DataSource) -> int | None:
        """Return the number of weights, known from ``settings`` and the data without reading any; None if it is not."""
        return None

    def vectors(self, images: Images) -> Vectors:
        """Return one vector per image."""
        raise NotImplementedError

    def encode(self, images: Images) -> dict[str, Tensor]:
        """Return "features", [n, width]."""
        return {"features": at_least_float32(self.vectors(images))}

    def forward(self, images: Images) -> Vectors:
        """Return one vector per image."""
        return self.encode(images)["features"]

    def shapes(self, channels: int, resolution: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of the features of one image."""
        return {"features": (self.width,)}

    def fingerprint(self) -> str:
        """Return a text that changes whenever the features may change: class, facts and a hash of the weights."""
        parts = [type(self).__name__, *map(str, self.facts)]
        state = self.state_dict()
        return " ".join([*parts, checksum(self)[:16]] if state else parts)


def number_of_weights(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(weight.numel() for weight in network.parameters())


def resized(images: Images, side: int, interpolation: str = "bicubic") -> Float[Tensor, "n c {side} {side}"]:
    """Resize to ``side`` pixels with antialiasing and half-pixel centres; images of that size are returned unchanged.

    This is ``F.interpolate(antialias=True, align_corners=False)`` of the codes of FD-loss and RDM.
    """
    if images.shape[-2:] == (side, side):
        return images
    return functional.interpolate(images, (side, side), mode=interpolation, antialias=True, align_corners=False)


def normalised(colours: Images, mean: Sequence[Number], std: Sequence[Number]) -> Images:
    """Return (colours - mean) / std per channel, for colours in [0, 1]."""
    shift, scale = (torch.tensor(values, dtype=colours.dtype, device=colours.device) for values in (mean, std))
    return (colours - shift[:, None, None]) / scale[:, None, None]
