"""The sliced Wasserstein distance of RDM (arXiv 2607.02375; compare/sliced_wasserstein.py:48-71).

SW_p = (mean over directions and ranks j of |a_(j) - b_(j)|^p)^(1/p), with the sorted projections of both sets.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import EPS, check_features, self_normalised
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast


def sliced_directions(features: int, count: int, seed: int) -> Float64[Tensor, "d l"]:
    """Return ``count`` unit vectors [features, count], float64; a vector depends only on ``seed`` and its number.

    The draws are keyed and do not depend on the device.
    """
    numbers = rng.normal(seed, "directions", count=features * count).reshape(count, features)
    return (numbers / numbers.norm(dim=1, keepdim=True)).mT.contiguous()


def sliced_power(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], directions: Float[Tensor, "..."], p: Number = 2
) -> Float[Tensor, ""]:
    """Return SW_p^p of the sets ``a`` [n,D] and ``b`` [n,D] over ``directions`` [D,L], with gradients for both sets.

    With p = 2, it is the training loss of RDM's ``sw`` ablation. Raises ValueError for sets of other sizes.
    """
    check_features(a, what="sliced_wasserstein: a")
    check_features(b, a.shape[1], "sliced_wasserstein: b")
    if len(a) != len(b):
        raise ValueError(f"sliced_wasserstein: sets of {len(a)} and {len(b)} rows; give as many of each")
    if directions.ndim != 2 or directions.shape[0] != a.shape[1] or not directions.numel():
        raise ValueError(f"directions {list(directions.shape)}: give [features, count] with {a.shape[1]} features")
    if not p >= 1:
        raise ValueError(f"p={p}: it is 1 or more")
    a = at_least_float32(a)
    return (sorted_projections(a, directions) - sorted_projections(b.to(a), directions)).abs().pow(p).mean()


def sorted_projections(rows: Float[Tensor, "n d"], directions: Float[Tensor, "d l"]) -> Float[Tensor, "l n"]:
    """Return the projections of ``rows`` (float32 or float64) on each direction, sorted, with a gradient for ``rows``.

    On a CPU and without a gradient NumPy sorts: it takes a tenth of torch's time and returns the same numbers.
    """
    with no_autocast(rows), full_products():
        along = directions.to(rows, non_blocking=True).mT @ rows.mT
    if along.requires_grad or along.device.type != "cpu":
        return along.sort(dim=1).values
    return torch.from_numpy(np.sort(along.numpy(), axis=1))


def sliced_wasserstein(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], directions: Float[Tensor, "..."], p: Number = 2
) -> Float[Tensor, ""]:
    """Return SW_p of two sets of equal size; see ``sliced_power``. Equal sets give 0 with a gradient of 0."""
    power = sliced_power(a, b, directions, p)
    apart = power > 0  # the root's derivative at 0 is infinite
    return torch.where(apart, torch.where(apart, power, 1) ** (1 / p), power)


def sliced_loss(
    features: Float[Tensor, "..."], real: Float[Tensor, "..."], directions: Float[Tensor, "..."], eps: Number = EPS
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return SW_2^2 / (stopgrad SW_2^2 + eps) of generated ``features`` [n,D] to ``real`` [n,D], and metrics.

    ``info["sw2"]`` is SW_2^2, detached. RDM draws ``real`` and 128 ``directions`` anew in each step.
    """
    raw = sliced_power(features, real.detach(), directions)
    return self_normalised(raw, eps), {"sw2": raw.detach()}
