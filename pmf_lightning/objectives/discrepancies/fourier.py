"""MMD^2 by random Fourier features (RDM, arXiv 2607.02375; compare/*.py): RDM's ``mmd_rff`` and its score MMDr14.

phi(x) = sqrt(2/F) cos(x W + b), W ~ N(0, 1) / bandwidth and b uniform in [0, 2 pi): phi(x) . phi(y) estimates the
Gaussian kernel.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import EPS, check_features, self_normalised
from pmf_lightning.objectives.discrepancies.kernels import CHUNK
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast, to_float64


@dataclass(frozen=True)
class FourierReference:
    """Frequencies W [D,F], phases b [F], and the mean of phi over real features [F]."""

    frequencies: Float[Tensor, "d f"]
    phases: Float[Tensor, " f"]
    mean: Float[Tensor, " f"]

    @classmethod
    @torch.no_grad()
    def fit(
        cls, pool: Float[Tensor, "..."], bandwidth: Number, features: int = 4096, seed: int = 0
    ) -> "FourierReference":
        """Return the reference of real features ``pool`` [n,D], float64; the draws do not depend on the device."""
        check_features(pool, what="FourierReference.fit: pool")
        width = pool.shape[1]
        drawn = rng.normal(seed, "frequencies", count=width * features).reshape(width, features) / bandwidth
        phases = 2 * math.pi * rng.uniform(seed, "phases", count=features)
        drawn, phases = drawn.to(to_float64(pool[:0])), phases.to(to_float64(pool[:0]))
        total = sum(_phi(to_float64(rows), drawn, phases).sum(0) for rows in pool.split(CHUNK))
        return cls(drawn, phases, total / len(pool))

    def to(self, device: torch.device | str) -> "FourierReference":
        """Return the reference on ``device``."""
        return FourierReference(self.frequencies.to(device), self.phases.to(device), self.mean.to(device))


def fourier_loss(
    features: Float[Tensor, "..."], reference: FourierReference, eps: Number = EPS
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss MMD^2 / (stopgrad MMD^2 + eps) with MMD^2 = |mean phi(features) - mean|^2, and metrics.

    ``features`` [N,D] are those of generated images; ``info["mmd2"]`` is detached. Raises ValueError for other features
    than the reference's.
    """
    raw = squared_fourier_mmd(features, reference)
    return self_normalised(raw, eps), {"mmd2": raw.detach()}


def squared_fourier_mmd(features: Float[Tensor, "..."], reference: FourierReference) -> Float[Tensor, ""]:
    """Return |mean phi(features) - mean|^2 with a gradient for ``features`` [N,D], in their dtype, at least float32.

    Raises ValueError for other features than the reference's.
    """
    check_features(features, len(reference.frequencies))
    wide = at_least_float32(features)
    with no_autocast(wide), full_products():
        mapped = _phi(wide, reference.frequencies.to(wide), reference.phases.to(wide))
    return (mapped.mean(0) - reference.mean.to(wide)).square().sum()


def _phi(x: Float[Tensor, "n d"], frequencies: Float[Tensor, "d f"], phases: Float[Tensor, " f"]) -> Tensor:
    return math.sqrt(2 / len(phases)) * (x @ frequencies + phases).cos()
