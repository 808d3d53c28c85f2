"""The Nystrom embedding of real features for RDM (arXiv 2607.02375, eq. 3; compare/reference_math.py).

Landmarks Z are the centroids of k-means. The mean embedding of the pool is approximated by sum_m alpha_m k(., Z_m) with
alpha = (K + jitter I)^(-1) mu, K = k(Z, Z) and mu_m the mean of k(Z_m, .) over the pool.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.kernels import CHUNK, gram, kernel_sums, random_rows, squared_distances
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast, to_float64

ITERATIONS = 20
JITTER = 1e-6  # on the diagonal of K, whose values are 1
KMEANS_ROWS = 200_000
K_RR_ROWS = 100_000


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "n d"], count: int, seed: int = 0, iterations: int = ITERATIONS
) -> Float[Tensor, "m d"]:
    """Return ``count`` centroids after Lloyd iterations from random rows; empty clusters become other random rows.

    The draws depend on ``seed`` and on the number of rows alone, not on the device.
    """
    points = at_least_float32(points)
    shift = points.mean(0)
    points = points - shift
    centres = points[rng.permutation(seed, "landmarks", count=len(points))[:count].to(points.device)]
    with no_autocast(points), full_products():
        for iteration in range(iterations):
            nearest = torch.cat([squared_distances(rows, centres).argmin(1) for rows in points.split(CHUNK)])
            sizes = torch.bincount(nearest, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, nearest, points)
            centres = sums / sizes.clamp_min(1)[:, None]
            empty = (sizes == 0).nonzero()[:, 0]
            if len(empty):
                spare = rng.permutation(seed, "empty", iteration, count=len(points))[: len(empty)]
                centres[empty] = points[spare.to(points.device)]
    return centres + shift


def nystrom_weights(
    pool: Float[Tensor, "n d"], landmarks: Float[Tensor, "m d"], bandwidth: Number, jitter: Number = JITTER
) -> Float64[Tensor, " m"]:
    """Return alpha [M], float64, by Cholesky; ``jitter`` is the only regularisation."""
    marks = to_float64(landmarks)
    mean = kernel_sums(marks, pool, bandwidth) / len(pool)
    identity = torch.eye(len(marks), dtype=marks.dtype, device=marks.device)
    factor = torch.linalg.cholesky(gram(marks, marks, bandwidth) + jitter * identity)
    return torch.cholesky_solve(mean[:, None], factor)[:, 0]


def self_similarity(
    pool: Float[Tensor, "n d"], bandwidth: Number, rows: int = K_RR_ROWS, seed: int = 0
) -> Float64[Tensor, ""]:
    """Return k_rr, the mean of k over all pairs of at most ``rows`` random rows, the diagonal included.

    The official code takes the first rows, which are a few classes of a sorted data set; random rows are what the paper
    means.
    """
    some = at_least_float32(random_rows(pool, rows, seed, "k_rr"))
    some = some - some.mean(0)
    total = sum(kernel_sums(part, some, bandwidth).sum() for part in some.split(CHUNK))
    return total / len(some) ** 2
