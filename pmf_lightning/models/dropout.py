"""Keyed dropout: the mask of a row is a function of the row's key, the site in the network and the position.

It uses integer hashes on the device of the data, without generator or state. The mask of a row does not depend on its
batch, device or micro-batch. A second forward pass of the same step has the same masks.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pmf_lightning.utils.precision import Number

Site = int | Int64[Tensor, ""]  # as a tensor, compiled code has it as an input, and is the same for all blocks
_WORD = 0xFFFFFFFF
_FACTOR = 0x45D9F3B  # below 2^31, so that a product with a 32-bit word fits into int64


def keyed_dropout(
    x: Float[Tensor, "b *shape"], keys: Int64[Tensor, " b"], site: Site, rate: Number
) -> Float[Tensor, "b *shape"]:
    """Set each value of ``x`` to 0 with probability ``rate`` and scale the others by 1/(1-rate); rate 0 returns ``x``.

    ``keys`` is a key per row, ``site`` the index of the dropout site in the network. Raises ValueError for a rate
    outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout {rate} is not in [0, 1)")
    if rate == 0:
        return x
    mask = keep_mask(keys, site, math.prod(x.shape[1:]), rate).view(x.shape)
    return torch.where(mask, x / (1 - rate), 0.0)


def keep_mask(keys: Int64[Tensor, " b"], site: Site, size: int, rate: Number) -> Bool[Tensor, "b {size}"]:
    """Return the keep mask of ``size`` values per row; the keep probability is 1 - ``rate`` to the nearest 2^-32."""
    low = _mixed(_mixed(keys & _WORD) ^ (site & _WORD))
    high = _mixed((keys >> 32) & _WORD ^ low)
    places = _mixed(torch.arange(size, device=keys.device))
    # An odd factor is one-to-one on words; with ``low`` only, one pair of rows in 2^32 would have equal masks.
    odd = high >> 1 | 1
    bits = _mixed((places ^ low[:, None]) * odd[:, None] & _WORD)
    return bits >= round(rate * 2**32)


def _mixed(words: Int64[Tensor, " *shape"]) -> Int64[Tensor, " *shape"]:
    """Hash 32-bit words one-to-one; every input bit flips about half of the output bits (T. Mueller's mixer)."""
    words = ((words >> 16) ^ words) * _FACTOR & _WORD
    words = ((words >> 16) ^ words) * _FACTOR & _WORD
    return (words >> 16) ^ words
