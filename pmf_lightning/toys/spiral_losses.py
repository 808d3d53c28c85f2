"""The six distances of RDM's toy as losses (arXiv 2607.02375, figure 3; toy/distances_toy.py).

Each function takes all real features [n,D] and the seed of the run. It returns the loss of generated features [B,D] at
a step. The losses are plain distances, without the self-normalisation of post-training. A loss of MMD adds Gaussian
kernels, whose bandwidths are ``scales`` times the median distance of real features.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.fourier import FourierReference, squared_fourier_mmd
from pmf_lightning.objectives.discrepancies.frechet import FrechetReference, frechet_distance
from pmf_lightning.objectives.discrepancies.kernels import median_bandwidth, random_rows
from pmf_lightning.objectives.discrepancies.mmd import MMDReference, squared_mmd
from pmf_lightning.objectives.discrepancies.populations import batch_statistics
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sliced_power
from pmf_lightning.objectives.drifting_loss import drift_loss
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

Real = Float[Tensor, "n d"]
Loss = Callable[[Float[Tensor, "b d"], int], Float[Tensor, ""]]


def frechet(real: Real, seed: int) -> Loss:
    """Return the squared Frechet distance of the moments of the batch alone to those of all real features."""
    reference = FrechetReference(*batch_statistics(real))
    return lambda points, step: frechet_distance(*batch_statistics(points), reference)


def sliced(real: Real, seed: int, directions: int) -> Loss:
    """Return the squared sliced Wasserstein distance over new ``directions`` to as many real rows, new in each step."""

    def loss(points: Tensor, step: int) -> Tensor:
        along = sliced_directions(points.shape[1], directions, rng.key(seed, "directions", step))
        return sliced_power(points, new_rows(real, len(points), seed, step), along)

    return loss


def drift(real: Real, seed: int, positives: int, temperatures: Sequence[Number]) -> Loss:
    """Return the drifting loss to ``positives`` real rows, new in each step."""

    def loss(points: Tensor, step: int) -> Tensor:
        rows = new_rows(real, positives, seed, step)
        return drift_loss(points[None], rows[None], temperatures=temperatures)[0].sum()

    return loss


def mmd_fourier(real: Real, seed: int, scales: Sequence[Number], frequencies: int) -> Loss:
    """Return the sum of squared MMDs in random Fourier features: ``frequencies`` per scale, drawn once."""
    references = [
        FourierReference.fit(real, width, frequencies, rng.key(seed, "scale", place))
        for place, width in enumerate(bandwidths(real, scales))
    ]
    return lambda points, step: sum(squared_fourier_mmd(points, reference) for reference in references)


def mmd_exact(real: Real, seed: int, scales: Sequence[Number]) -> Loss:
    """Return the sum of squared MMDs to as many real rows, new in each step, up to a constant."""
    widths = bandwidths(real, scales)

    def loss(points: Tensor, step: int) -> Tensor:
        rows = new_rows(real, len(points), seed, step)
        return sum(squared_mmd(points, MMDReference.exact(rows, width, k_rr=0.0))[0] for width in widths)

    return loss


def mmd_nystrom(real: Real, seed: int, scales: Sequence[Number], landmarks: int, jitter: Number) -> Loss:
    """Return the sum of squared MMDs to a frozen Nystrom embedding of all real features.

    The scales share ``landmarks`` random real rows.
    """
    marks = random_rows(real, landmarks, seed, "landmarks")
    references = [MMDReference.fit(real, marks, bandwidth=width, jitter=jitter) for width in bandwidths(real, scales)]
    return lambda points, step: sum(squared_mmd(points, reference)[0] for reference in references)


# The name of a distance in the configuration -> its function, in the order of the figure.
LOSSES = {
    "frechet": frechet,
    "sliced": sliced,
    "drift": drift,
    "mmd_fourier": mmd_fourier,
    "mmd_exact": mmd_exact,
    "mmd_nystrom": mmd_nystrom,
}


def bandwidths(real: Real, scales: Sequence[Number]) -> list[float]:
    """Return the bandwidths of the kernels, in the units of the features."""
    middle = median_bandwidth(real)
    return [scale * middle for scale in scales]


def new_rows(real: Real, count: int, seed: int, step: int) -> Float[Tensor, "b d"]:
    """Return ``count`` real rows without repetition, drawn anew in each step."""
    return random_rows(real, count, rng.key(seed, "real rows", step), "spiral")
