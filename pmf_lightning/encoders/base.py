"""The interface of frozen networks from images to features, which losses and evaluation share.

``Encoder`` is the interface. Losses use modules of this class, which take images in [-1, 1] and pass gradients to them.
Evaluation uses an ``Extractor``, which reads its weights when it is opened on a device and takes uint8 images.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import full_products

Levels = UInt8[Tensor, "b c h w"]


class Encoder(nn.Module):
    """A frozen network from images [n,C,H,W] in [-1, 1] to features by name; gradients flow to images, not to weights.

    A subclass builds the network, calls ``freeze`` and implements ``encode``. ``to(device)`` moves it, as any module.
    An encoder must not be a submodule of a module that is trained and saved.

    Attributes:
        channels: supported numbers of channels; None: any.
        side: pixels along a side of the images that the network takes; None: any, and it resizes them if it must.
    """

    channels: Sequence[int] | None = None
    side: int | None = None

    def freeze(self) -> None:
        """Freeze the weights, and leave training mode for good."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode."""
        return super().train(False)

    def check(self, channels: int, resolution: int) -> None:
        """Raise UserError, before any long work, unless the network supports such images."""
        if self.channels is not None and channels not in self.channels:
            known = " or ".join(map(str, self.channels))
            raise UserError(f"data.channels={channels}: {type(self).__name__} takes images of {known} channels")

    def encode(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the features by name, each [n, ..., channels] or [n, channels, height, width]."""
        raise NotImplementedError

    def shapes(self, channels: int, resolution: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every feature of one image, by name."""
        weight = next(iter(self.parameters()), torch.empty(0))
        side = self.side or resolution
        with torch.no_grad():
            found = self.encode(torch.zeros(1, channels, side, side, dtype=weight.dtype, device=weight.device))
        return {name: tuple(values.shape[1:]) for name, values in found.items()}

    def fingerprint(self) -> str:
        """Return a text that changes whenever the weights, and so the features, change."""
        state = self.state_dict()
        return f"{type(self).__name__} {checksum(self)[:16] if state else ''}".rstrip()


class Features(NamedTuple):
    """Output of a network: features [b, F], and logits [b, K] if it is a classifier."""

    features: Float[Tensor, "b f"]
    logits: Float[Tensor, "b k"] | None


Network = Callable[[Levels], Features]


@runtime_checkable
class Extractor(Protocol):
    """Feature extractor, from ``conf/extractor``.

    ``name`` is part of the names of scores ("inception" makes it an FID). ``features`` is the number of features,
    ``logits`` the number of classes (0: none), ``channels`` the supported numbers of image channels. ``batch`` is the
    number of images per forward pass; it is constant because the last bits of convolutions depend on it.
    """

    name: str
    features: int
    logits: int
    channels: Sequence[int]
    batch: int

    def check(self) -> None:
        """Raise UserError if ``open`` would fail, for example for a missing file. Must be cheap."""

    def open(self, device: torch.device) -> Network:
        """Return the frozen network on ``device``, from uint8 images [b, C, H, W] to ``Features``."""

    def fingerprint(self) -> str:
        """Return a text that changes whenever the features may change; only statistics with equal texts compare."""


def check_channels(extractor: Extractor, channels: int, option: str, whose: str, remedy: str) -> None:
    """Raise UserError, which names ``option`` and ``whose`` images they are, unless it sees such images."""
    if channels not in extractor.channels:
        known = " or ".join(map(str, extractor.channels))
        raise UserError(f"{option}: it sees images of {known} channels, {whose} {channels}; {remedy}")


@torch.no_grad()
def extract(network: Network, images: Levels, batch: int, device: torch.device) -> Features:
    """Return the features of all ``images`` in float32 on ``device``, ``batch`` at a time, in full precision."""
    with full_precision(device):
        # always contiguous: the last bits of convolutions depend on the memory format
        contiguous = images.to(device).clone(memory_format=torch.contiguous_format)
        parts = [network(part) for part in contiguous.split(batch)]
    logits = None if parts[0].logits is None else torch.cat([part.logits.float() for part in parts])
    return Features(torch.cat([part.features.float() for part in parts]), logits)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32, and make cuDNN deterministic."""
    with (
        full_products(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def three_channels(images: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b 3 h w"]:
    """Repeat the channel of grey images three times, as a view; ValueError unless there are 1 or 3 channels."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images have {images.shape[1]} channels; this network takes 1 or 3")
    return images.expand(-1, 3, -1, -1)


def checksum(network: nn.Module) -> str:
    """Return a hash of all weights of a network in hex, on any device and of any dtype."""
    numbers = torch.cat([weight.detach().cpu().flatten() for weight in network.state_dict().values()])
    content = numbers.view(torch.uint8).numpy()  # numpy has no bfloat16
    return hashlib.blake2b(content, digest_size=16).hexdigest()  # torch.load does not detect flipped bits
