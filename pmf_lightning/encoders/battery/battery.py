"""A battery: several frozen encoders that see the same images, each with one vector of features per image."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError

FEATURES = "features"  # name of the vector that a member returns


class Battery(Encoder):
    """Frozen encoders by name. ``encode`` returns one vector per image and member, with a gradient to the images.

    Args:
        members: encoders that take images [n,C,H,W] in [-1, 1] of the data's size, resize them themselves, and return
            "features" [n,D].
        decoder: turns latents into pixels first, once for all members (models/sd_vae.py); None: images are pixels.

    Attributes:
        targets: what an objective compares the features with, by member (``EncoderRequest.target``); {} elsewhere.
    """

    def __init__(self, members: Mapping[str, Encoder], decoder: Any = None):
        super().__init__()
        self.members = nn.ModuleDict(members)
        self.decoder = decoder
        self.targets: dict[str, Any] = {}
        self.freeze()

    def check(self, channels: int, resolution: int) -> None:
        """Raise UserError unless all members support such images."""
        for name, member in self.members.items():
            try:
                member.check(channels, resolution)
            except UserError as error:
                raise UserError(f"battery.members.{name}: {error}") from error

    def encode(self, images: Float[Tensor, "n c h w"], clamp: bool = False) -> dict[str, Float[Tensor, "n d"]]:
        """Return the features [n,D] of each member, by its name.

        Latents are decoded first. With ``clamp`` pixels are clipped to [-1, 1], without a gradient where they are.
        """
        pixels = images if self.decoder is None else self.decoder.decode_with_gradient(images)
        pixels = pixels.clamp(-1, 1) if clamp else pixels
        return {name: member.encode(pixels)[FEATURES] for name, member in self.members.items()}

    def widths(self, channels: int, resolution: int) -> dict[str, int]:
        """Return the numbers per image of each member, for images of that size."""
        return {name: member.shapes(channels, resolution)[FEATURES][0] for name, member in self.members.items()}

    def fingerprints(self) -> dict[str, str]:
        """Return a text per member that changes whenever its features may change."""
        return {name: member.fingerprint() for name, member in self.members.items()}

    def fingerprint(self) -> str:
        """Return a text that changes whenever the features of any member may change."""
        return digest(*(f"{name} {text}" for name, text in self.fingerprints().items()))

    def to(self, device: torch.device | str) -> "Battery":
        """Move the members and the targets to ``device``."""
        super().to(device)
        self.targets = {name: target.to(device) for name, target in self.targets.items()}
        return self
