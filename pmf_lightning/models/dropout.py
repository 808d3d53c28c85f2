"""Dropout by key: what is dropped of a row is a function of the row's key, the place in the network and the position.

No generator and no state: integer hashes on the device of the data. A row keeps its mask whatever batch, device or
micro-batch it is in, and a second forward pass of the same step drops the same numbers.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pmf_lightning.utils.precision import Number

_WORD = 0xFFFFFFFF
_FACTOR = 0x45D9F3B  # below 2^31, so that a product with a 32-bit word fits into int64


def keyed_dropout(
    x: Float[Tensor, "b *shape"], keys: Int64[Tensor, " b"], site: int, rate: Number
) -> Float[Tensor, "b *shape"]:
    """Set each number of ``x`` to 0 with probability ``rate`` and scale the others by 1/(1-rate); rate 0 returns ``x``.

    ``keys`` is a key per row, ``site`` the number of the place in the network. Raises ValueError for a rate outside
    [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout {rate} is not in [0, 1)")
    if rate == 0:
        return x
    kept = keep_mask(keys, site, math.prod(x.shape[1:]), rate).view(x.shape)
    return torch.where(kept, x / (1 - rate), 0.0)


def keep_mask(keys: Int64[Tensor, " b"], site: int, size: int, rate: Number) -> Bool[Tensor, "b {size}"]:
    """Return which of ``size`` numbers of each row stay, each with probability 1 - ``rate`` to the nearest 2^-32."""
    low = _mixed(_mixed(keys & _WORD) ^ (site & _WORD))
    high = _mixed((keys >> 32) & _WORD ^ low)
    places = _mixed(torch.arange(size, device=keys.device))
    # An odd factor keeps the words apart; with ``low`` alone two rows in 2^32 pairs would share their masks.
    odd = high >> 1 | 1
    bits = _mixed((places ^ low[:, None]) * odd[:, None] & _WORD)
    return bits >= round(rate * 2**32)


def _mixed(words: Int64[Tensor, " *shape"]) -> Int64[Tensor, " *shape"]:
    """Hash 32-bit words, one to one: every bit of the input flips about half of the result's (T. Mueller's mixer)."""
    words = ((words >> 16) ^ words) * _FACTOR & _WORD
    words = ((words >> 16) ^ words) * _FACTOR & _WORD
    return (words >> 16) ^ words
