"""The contract of an extractor: a frozen network from uint8 images to features."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pmf_lightning.utils.precision import full_products

Levels = UInt8[Tensor, "b c h w"]


class Features(NamedTuple):
    """What a network says of images: features [b, F], and logits [b, K] where it classifies."""

    features: Float[Tensor, "b f"]
    logits: Float[Tensor, "b k"] | None


Network = Callable[[Levels], Features]


@runtime_checkable
class Extractor(Protocol):
    """A kind of features, from ``conf/extractor``.

    ``name`` stands in the names of scores ("inception" makes it an FID), ``features`` is the number of features,
    ``logits`` that of classes (0: none), ``channels`` are those that images may have, and ``batch`` images go through
    the network at a time: always as many, because the last bits of convolutions depend on it.
    """

    name: str
    features: int
    logits: int
    channels: Sequence[int]
    batch: int

    def check(self) -> None:
        """Raise UserError where ``open`` cannot work, such as for a missing file, without heavy work."""

    def open(self, device: torch.device) -> Network:
        """Return the frozen network on ``device``: uint8 images [b, C, H, W] to ``Features``."""

    def fingerprint(self) -> str:
        """Return words that change whenever the features may have changed; statistics of others do not compare."""


@torch.no_grad()
def extract(network: Network, images: Levels, batch: int, device: torch.device) -> Features:
    """Return the features of all ``images`` in float32 on ``device``, ``batch`` at a time, in full precision."""
    with full_precision(device):
        # one order in memory: convolutions of another differ in the last bits
        whole = images.to(device).clone(memory_format=torch.contiguous_format)
        parts = [network(part) for part in whole.split(batch)]
    logits = None if parts[0].logits is None else torch.cat([part.logits.float() for part in parts])
    return Features(torch.cat([part.features.float() for part in parts]), logits)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep autocast and TF32 away, and cuDNN from choosing its algorithms by chance."""
    with (
        full_products(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def three_channels(images: Levels) -> UInt8[Tensor, "b 3 h w"]:
    """Return images as networks of photographs take them: grey ones three times; ValueError for other channels."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images of {images.shape[1]} channels; features of pictures are made of 1 or 3")
    return images.expand(-1, 3, -1, -1).contiguous()


def file_sha256(path: Path) -> str:
    """Return the hex digits of a file; they are kept as long as its size and time stay."""
    status = path.stat()
    return _sha256(str(path.absolute()), status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
