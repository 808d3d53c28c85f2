"""Protocol of feature extractors: frozen networks from uint8 images to features."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from pmf_lightning.utils.precision import full_products

Levels = UInt8[Tensor, "b c h w"]


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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex; it is cached until the file's size or modification time changes."""
    status = path.stat()
    return _sha256(str(path.absolute()), status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
