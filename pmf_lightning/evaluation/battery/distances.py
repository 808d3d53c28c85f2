"""Distances of samples to real images in one encoder, as ratios to those of validation images.

FDr = FD(samples, train) / FD(validation, train) (FD-loss, arXiv 2604.28190; frechet_distance/metrics.py:86-93), and the
same with the sliced Wasserstein distance SW_2 (RDM, arXiv 2607.02375; eval/sw_r14.py). Real images score about 1.
"""

import math
from functools import cache
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.evaluation.moments import Gaussian
from pmf_lightning.objectives.discrepancies.kernels import random_rows
from pmf_lightning.objectives.discrepancies.populations import batch_statistics
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sorted_projections
from pmf_lightning.utils import rng

SEED = 0  # of directions and of the choice of rows
LEAST_FOR_SPREAD = 4  # images: two halves, each with a covariance


@cache
def directions_of(features: int, count: int) -> Float[Tensor, "d l"]:
    """Return the ``count`` directions of all sets and all encoders with ``features`` features, float32.

    They come from seed 0. The official ones come from torch's generator in blocks of 64 rows, so they are others.
    """
    return sliced_directions(features, count, SEED).float()


class SlicedReference:
    """SW_2 to the real features ``train`` [m,D], over ``count`` fixed directions, on ``device``.

    Sets have equal sizes: all are cut to the smallest size, at most ``most``. Of real features random rows are taken,
    of samples the first ones, whose labels are balanced. The projections of the training rows are kept: 4 bytes per
    direction and row.
    """

    def __init__(self, train: Float[Tensor, "m d"], count: int, most: int, device: torch.device | str = "cpu"):
        self.train, self.count, self.most, self.device = train, count, most, torch.device(device)
        self._along: Float[Tensor, "l n"] | None = None  # projections of the training rows at the last size

    def size(self, *others: int) -> int:
        """Return the size to which sets of these numbers of rows are cut."""
        return min(self.most, len(self.train), *others)

    @torch.no_grad()
    def distance(self, features: Float[Tensor, "n d"], size: int, random: bool = False) -> float:
        """Return SW_2 of ``size`` rows of ``features`` to as many training rows, in the units of the features."""
        rows = random_rows(features, size, SEED, "sliced validation") if random else features[:size]
        if self._along is None or self._along.shape[1] != size:
            self._along = self._sorted(random_rows(self.train, size, SEED, "sliced train"))
        return float((self._sorted(rows) - self._along).square().mean().sqrt())

    def _sorted(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "l n"]:
        directions = directions_of(rows.shape[1], self.count)
        return sorted_projections(rows.float().to(self.device), directions.to(self.device))


def spread(train: Gaussian, held_out: Float[Tensor, "n d"], draws: int) -> float:
    """Return the standard deviation of the logarithm of FD ratios between random halves of the validation images.

    Each of ``draws`` splits compares the distances of two sets of n/2 real images to the training images. The ratio of
    such distances is typically between 1 / (1 + spread) and 1 + spread. Ratios of larger sets are closer to 1. Raises
    ValueError for fewer than ``LEAST_FOR_SPREAD`` images.
    """
    half = len(held_out) // 2
    if len(held_out) < LEAST_FOR_SPREAD or draws < 1:
        raise ValueError(f"spread of {len(held_out)} images in {draws} draws: give at least 4 images and a draw")
    squares = []
    for draw in range(draws):
        order = rng.permutation(SEED, "spread", draw, count=len(held_out))
        halves = held_out[order[:half]], held_out[order[half : 2 * half]]
        one, other = (train.distance(*batch_statistics(rows)) for rows in halves)
        squares.append(math.log(one / other) ** 2)  # the mean is 0, as the order of the halves is random
    return math.sqrt(fmean(squares))
