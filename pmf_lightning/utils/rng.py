"""Keyed random numbers: every random number of training is a function of its key, never of earlier numbers.

A key is any sequence of integers and strings, for example ``(seed, "noise", step, sample)``. The same key gives the
same numbers for any order of calls, number of devices and number of micro-batches. The global generator of torch is
never read. Scalars are float64 and images float32. The numbers come from the CPU generator; images on an accelerator
come from that device's generator.
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
    """Rows of the global batch in one micro-batch: ``index, index + count, index + 2 count, ...``.

    The rows are assigned round-robin, so every rank and every micro-batch has an equal part of any prefix of the
    global batch. The costly rows (those with t != r) and the dropped labels are therefore spread evenly.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard index {self.index} is not in [0, {self.count})")

    def rows(self, size: int) -> Int64[Tensor, " size"]:
        """Return the global positions of this micro-batch's ``size`` rows."""
        return self.index + self.count * torch.arange(size)


def key(*names: int | str) -> int:
    """Hash names into a 63-bit integer, the same in every process (unlike Python's ``hash``)."""
    text = json.dumps(names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator seeded with the key ``names``."""
    return torch.Generator(device=device).manual_seed(key(*names))


def uniform(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Sample ``count`` uniform numbers in [0, 1); number i does not depend on ``count``."""
    return torch.rand(count, generator=generator(*names), dtype=torch.float64)


def hashed_uniform(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Return ``count`` uniform numbers in [0, 1) from a hash of the names, the same with every library version.

    ``uniform`` depends on torch's generator, which may change. Number i does not depend on ``count``.
    """
    data = hashlib.shake_256(json.dumps(names).encode()).digest(8 * count)
    return torch.from_numpy((np.frombuffer(data, "<u8") >> 11) * 2.0**-53)


def normal(*names: int | str, count: int) -> Float64[Tensor, " count"]:
    """Sample ``count`` standard normal numbers; number i does not depend on ``count``.

    ``uniform`` is inverted, because torch.randn uses another algorithm for short tensors: its numbers depend on the
    count.
    """
    return torch.special.ndtri(uniform(*names, count=count).clamp_min(2.0**-54))


def normal_images(
    *names: int | str, rows: Int64[Tensor, " n"], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Float32[Tensor, "n ..."]:
    """Sample one standard normal image of ``shape`` per global row; an image depends only on its row number."""
    images = torch.empty(len(rows), *shape, device=device)
    for image, row in zip(images, rows.tolist(), strict=True):
        image.normal_(generator=generator(*names, row, device=device))
    return images


def permutation(*names: int | str, count: int) -> Int64[Tensor, " count"]:
    """Sample a permutation of ``range(count)``."""
    return torch.randperm(count, generator=generator(*names))
