"""Feature extractors of evaluation from the encoders of batteries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.base import Features, Levels, Network
from pmf_lightning.encoders.battery.member import Member
from pmf_lightning.encoders.battery.timm_member import TimmMember, timm_width
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

CPU_IMAGES = 16  # at a time on a CPU: the maps of more do not fit into its caches


@dataclass(frozen=True)
class EncoderFeatures:
    """An encoder of one vector per image as an extractor.

    Args:
        name: part of the names of scores.
        encoder: makes the encoder, and reads its weights.
        features: numbers per image.
        batch: images per forward pass.
        channels: supported numbers of channels.
    """

    name: str
    encoder: Callable[[], Member]
    features: int
    batch: int
    channels: Sequence[int] = (1, 3)
    logits: int = 0

    def check(self) -> None:
        """Raise UserError if the weights are missing or do not fit."""
        if self.batch < 1:
            raise UserError(f"extractor.batch={self.batch}: at least one image at a time is needed")
        _ = self.opened

    @cached_property
    def opened(self) -> Member:
        """The encoder, made at the first use."""
        return self.encoder()

    def fingerprint(self) -> str:
        """Return the fingerprint of the encoder."""
        return self.opened.fingerprint()

    def open(self, device: torch.device) -> Network:
        """Return the encoder on ``device``, for uint8 images."""
        member = self.opened.to(device)

        def network(images: Levels) -> Features:
            parts = images.split(CPU_IMAGES) if device.type == "cpu" else [images]
            return Features(torch.cat([member(to_float(part)) for part in parts]), None)

        return network


def timm_features(
    name: str,
    model: str,
    batch: int,
    weights: str | None = None,
    side: int | None = None,
    mean: Sequence[Number] | None = None,
    std: Sequence[Number] | None = None,
    interpolation: str | None = None,
    pool: str = "head",
) -> EncoderFeatures:
    """Return an extractor from a network of timm (see ``TimmMember``); UserError for an unknown name."""
    options = {"weights": weights, "side": side, "mean": mean, "std": std, "interpolation": interpolation}
    encoder = partial(TimmMember, model, name=name, option="extractor", pool=pool, **options)
    return EncoderFeatures(name, encoder, timm_width(model, pool, "extractor"), batch)
