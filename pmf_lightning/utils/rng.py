"""Keyed random numbers: every draw of training is a function of names, never of what was drawn before.

A key is any sequence of integers and words, for example ``(seed, "noise", step, sample)``. The same key gives the same
numbers whatever the order of calls, the number of devices or the number of micro-batches; the global generator of torch
is never read. Values come in float64 (scalars) or float32 (images) on the CPU generator's stream or, for images on an
accelerator, on that device's own stream.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class BatchRows:
    """A micro-batch's share of the global batch: the rows ``index, index + count, index + 2 count, ...``.

    Dealing rows out in turn gives every rank and every micro-batch its part of any prefix of the global batch, so the
    costly rows (those with t != r) and the dropped labels are spread evenly.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard index {self.index} is not in [0, {self.count})")

    def rows(self, size: int) -> Int64[Tensor, " size"]:
        """Return the global positions of this shard's ``size`` rows."""
        return self.index + self.count * torch.arange(size)


def key(*names: int | str) -> int:
    """Hash names into a 63-bit integer that is the same in every process (unlike Python's ``hash``)."""
    text = json.dumps(names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the stream called ``names``."""
    return torch.Generator(device=device).manual_seed(key(*names))


def uniform(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Draw ``count`` numbers in [0, 1); number i does not depend on ``count``."""
    return torch.rand(count, generator=generator(*names), dtype=torch.float64)


def hashed_uniform(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Return ``count`` numbers in [0, 1) from a hash of the names alone: the same with every version of every library.

    ``uniform`` is the same only as long as torch's own generator is. Number i does not depend on ``count``.
    """
    data = hashlib.shake_256(json.dumps(names).encode()).digest(8 * count)
    return torch.from_numpy((np.frombuffer(data, "<u8") >> 11) * 2.0**-53)


def normal(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Draw ``count`` standard normal numbers; number i does not depend on ``count``.

    By inversion of ``uniform``: torch.randn takes another path for short tensors, so its numbers depend on the count.
    """
    return torch.special.ndtri(uniform(*names, count=count).clamp_min(2.0**-54))


def normal_images(
    *names: int | str, rows: Int64[Tensor, " n"], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Float32[Tensor, "n ..."]:
    """Draw one standard normal image of ``shape`` per global row; an image depends on its row number alone."""
    images = torch.empty(len(rows), *shape, device=device)
    for image, row in zip(images, rows.tolist(), strict=True):
        image.normal_(generator=generator(*names, row, device=device))
    return images


def permutation(*names: int | str, count: int) -> Int64[Tensor, " count"]:
    """Draw a permutation of ``range(count)``."""
    return torch.randperm(count, generator=generator(*names))
