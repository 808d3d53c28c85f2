"""The Frechet distance of two Gaussians, in float64, finite also where covariances are singular."""

from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

TINY = 1e-12  # a covariance whose smallest eigenvalue is below so much of its largest counts as singular


class Gaussian:
    """Mean [F] and covariance [F, F]; what the distance needs of these alone is computed once."""

    def __init__(self, mu: Float64[Tensor, " f"], sigma: Float64[Tensor, "f f"]) -> None:
        self.mu, self.sigma = mu, sigma

    @cached_property
    def spectrum(self) -> tuple[Float64[Tensor, " f"], Float64[Tensor, "f f"]]:
        """Eigenvalues, ascending, and eigenvectors of the covariance."""
        return tuple(torch.linalg.eigh(self.sigma))

    @cached_property
    def root(self) -> Float64[Tensor, "f f"]:
        """The positive root of the covariance; eigenvalues that rounding made negative are taken as 0."""
        values, vectors = self.spectrum
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    @property
    def near_singular(self) -> bool:
        """Whether the smallest eigenvalue of the covariance is next to none of its largest."""
        values = self.spectrum[0]
        return bool(values[0] <= TINY * values[-1])

    def distance(self, mu: Float64[Tensor, " f"], sigma: Float64[Tensor, "f f"]) -> float:
        """Return ``|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`` (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

        The last trace is the sum of the roots of the eigenvalues of ``S1^(1/2) S2 S1^(1/2)``, which is symmetric: real
        eigenvalues, those that rounding made negative taken as 0.
        """
        product = self.root @ sigma @ self.root
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
        return float((self.mu - mu).square().sum() + self.sigma.trace() + sigma.trace() - 2 * cross)
