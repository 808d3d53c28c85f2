"""The Gaussian kernel of RDM (arXiv 2607.02375): gram matrices, its bandwidth, and its mean over a large set.

k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)) on features without normalisation (compare/kernels.py).
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import check_features
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast, to_float64

CHUNK = 8192  # rows of a gram matrix that are held at once
BANDWIDTH_ROWS = 10_000
LEAST_BANDWIDTH = 1e-5


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return |x - y|^2 for all pairs, at least 0, by one matrix product."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.mT, alpha=-2).clamp_min_(0)


def gram(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], bandwidth: Number | Tensor) -> Float[Tensor, "n m"]:
    """Return k(x, y) for all pairs."""
    return (squared_distances(x, y) / (-2 * bandwidth**2)).exp_()


@torch.no_grad()
def kernel_sums(
    x: Float[Tensor, "n d"], pool: Float[Tensor, "m d"], bandwidth: Number | Tensor, batch_size: int = CHUNK
) -> Float64[Tensor, " n"]:
    """Return the sum over the rows of ``pool`` of k(x, row), in the dtype of ``x``, added up in float64.

    ``pool`` may be on another device and of another dtype; ``batch_size`` of its rows are moved at a time.
    """
    total = to_float64(x.new_zeros(len(x)))
    with no_autocast(x), full_products():
        for rows in pool.split(batch_size):
            total += to_float64(gram(x, rows.to(x), bandwidth)).sum(1)
    return total


@torch.no_grad()
def median_bandwidth(
    features: Float[Tensor, "..."],
    other: Float[Tensor, "..."] | None = None,
    scale: Number = 1.0,
    rows: int = BANDWIDTH_ROWS,
    seed: int = 0,
) -> float:
    """Return scale * max(root of the median squared distance, 1e-5) (compare/median_heuristic.py).

    The median, the lower one of an even count, is over all pairs i < j of at most ``rows`` random rows of each set,
    joined. The rows depend on ``seed`` and on the number of rows alone. Raises ValueError for fewer than two rows.
    """
    sets = [features] if other is None else [features, other]
    for one in sets:
        check_features(one, sets[0].shape[1])
    points = torch.cat([at_least_float32(random_rows(one, rows, seed, "bandwidth")) for one in sets])
    if len(points) < 2:
        raise ValueError("median_bandwidth: one row has no distance to another; give at least 2")
    points = points - points.mean(0)  # distances are unchanged and lose less to rounding
    with no_autocast(points), full_products():
        squares = squared_distances(points, points)
    pairs = torch.cat([squares[i, i + 1 :] for i in range(len(points) - 1)])
    return scale * max(pairs.median().sqrt().item(), LEAST_BANDWIDTH)


def random_rows(pool: Float[Tensor, "n d"], count: int, seed: int, name: str) -> Float[Tensor, "m d"]:
    """Return min(count, n) rows of ``pool`` by a keyed draw that does not depend on the device."""
    if count >= len(pool):
        return pool
    return pool[rng.permutation(seed, name, count=len(pool))[:count].to(pool.device)]
