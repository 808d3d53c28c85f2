"""Laws of the pair of times (t, r), 0 <= r <= t <= 1, as functions of explicit draws."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmf_lightning.precision import Number

Times = Float[Tensor, " b"]


def logit_normal(normal: Times, mean: Number, std: Number) -> Times:
    """Return sigmoid(mean + std * normal)."""
    return torch.sigmoid(mean + std * normal)


def tie_then_sort(a: Times, b: Times, tied: Bool[Tensor, " b"]) -> tuple[Times, Times]:
    """Return (t, r) of pMF: tied rows take the single draw ``a`` for both, then the pair is sorted.

    iMF sorts first, so that its tied rows see the larger of two draws: another law, which must not share this name.
    """
    b = torch.where(tied, a, b)
    return torch.maximum(a, b), torch.minimum(a, b)
