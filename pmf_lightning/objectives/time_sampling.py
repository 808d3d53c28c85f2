"""Distributions of the pair of times (t, r), 0 <= r <= t <= 1, as functions of given random numbers."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmf_lightning.utils.precision import Number

Times = Float[Tensor, " b"]


def logit_normal(normal: Times, mean: Number, std: Number) -> Times:
    """Return sigmoid(mean + std * normal)."""
    return torch.sigmoid(mean + std * normal)


def tie_then_sort(a: Times, b: Times, tied: Bool[Tensor, " b"]) -> tuple[Times, Times]:
    """Return (t, r) of pMF: tied rows use the sample ``a`` for both, then the pair is sorted."""
    b = torch.where(tied, a, b)
    return torch.maximum(a, b), torch.minimum(a, b)


def sort_then_tie(a: Times, b: Times, tied: Bool[Tensor, " b"]) -> tuple[Times, Times]:
    """Return (t, r) of iMF: the pair is sorted, then r := t in tied rows, which get the larger of two samples."""
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    return t, torch.where(tied, t, r)


ORDERS = {"tie_then_sort": tie_then_sort, "sort_then_tie": sort_then_tie}
