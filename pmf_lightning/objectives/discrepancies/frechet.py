"""The Frechet distance as a loss (FD-loss, arXiv 2604.28190; official code frechet_distance/losses.py:51-129).

FD = |mu - m|^2 + tr Sigma + tr S - 2 tr (R Sigma R)^(1/2) for generated moments (mu, Sigma) and real ones (m, S), with
R = S^(1/2). The arithmetic is float64. The evaluation's distance of image sets is in evaluation/frechet.py.
"""

import copy

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import check_features, self_normalised
from pmf_lightning.objectives.discrepancies.populations import Population, batch_statistics
from pmf_lightning.utils.precision import Number, at_least_float32, to_float64

EPS = 0.01  # c of the paper, added to the distance by which a loss is divided
LEAST_EIGENVALUE = 1e-12  # relative to the largest; smaller ones are rounding and get no gradient
ASYMMETRY = 1e-6  # relative; statistics of float32 sums are symmetric to 1e-7


class FrechetReference:
    """Mean ``mu`` [D] and covariance ``sigma`` [D,D] of real features, with the root R of the covariance, float64.

    R is computed once, with negative eigenvalues set to 0. Raises ValueError for other shapes, non-finite numbers, and
    a ``sigma`` that is not symmetric.
    """

    def __init__(self, mu: Float[Tensor, "..."], sigma: Float[Tensor, "..."]):
        _check_moments(mu, sigma, "FrechetReference")
        self.mu, sigma = to_float64(mu.detach()), to_float64(sigma.detach())
        if not bool(self.mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError("FrechetReference: mu or sigma is not finite; recompute the statistics")
        if bool((sigma - sigma.mT).abs().max() > ASYMMETRY * sigma.abs().max()):
            raise ValueError("FrechetReference: sigma is not symmetric, so it is not a covariance; recompute it")
        self.sigma = (sigma + sigma.mT) / 2
        values, vectors = torch.linalg.eigh(self.sigma)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
        self.trace = self.sigma.trace()
        self.width = len(mu)

    def to(self, device: torch.device | str) -> "FrechetReference":
        """Return the reference on ``device``."""
        other = copy.copy(self)
        for name in ("mu", "sigma", "root", "trace"):
            setattr(other, name, getattr(self, name).to(device))
        return other


def frechet_distance(
    mu: Float[Tensor, "..."], sigma: Float[Tensor, "..."], reference: FrechetReference
) -> Float[Tensor, ""]:
    """Return the squared Frechet distance of the Gaussian (``mu`` [D], ``sigma`` [D,D]) to ``reference``.

    The result has the dtype of ``sigma``, at least float32. With G = I - R (R Sigma R)^(-1/2) R, the gradients are
    2 (mu - m) and G; eigenvalues below 1e-12 of the largest are left out of the inverse root, so gradients are finite
    for covariances of any rank. Non-finite moments give NaN. Raises ValueError for shapes that do not fit.
    """
    _check_moments(mu, sigma, "frechet_distance")
    if len(mu) != reference.width:
        raise ValueError(f"{len(mu)} features, the reference has {reference.width}; both must come from one encoder")
    wide_mu, wide_sigma = to_float64(mu), to_float64(sigma)
    root = reference.root.to(wide_sigma)
    inner = root @ wide_sigma @ root
    cross = _trace_of_root((inner + inner.mT) / 2)
    shift = (wide_mu - reference.mu.to(wide_mu)).square().sum()
    fd = shift + wide_sigma.trace() + reference.trace.to(wide_sigma) - 2 * cross
    return fd.to(torch.promote_types(sigma.dtype, torch.float32))


def frechet_loss(
    new: Float[Tensor, "..."],
    population: Population | None,
    reference: FrechetReference,
    eps: Number = EPS,
    ridge: Number = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss FD / (stopgrad FD + eps) of one encoder (losses.py), and metrics to log.

    Args:
        new: features of the new images [n,D], the only input that gets a gradient: about n/N, or 1 - beta, of that of
            a whole population of such rows.
        population: past features. The caller enters the new rows by ``population.updated(new)`` after the backward
            pass. None means the moments of the batch alone.
        reference: moments of real features.
        eps: c of the paper, above 0.
        ridge: added to the diagonal of the covariance of a batch; it has no effect on a population.

    The loss has the dtype of ``new``, at least float32. Its value is about 1 - eps / FD; ``info["fd"]``, detached and
    float64, is the distance. Raises ValueError for shapes that do not fit, a population smaller than the batch, and one
    row without a population.
    """
    check_features(new, reference.width)
    mu, sigma = batch_statistics(new, ridge) if population is None else population.statistics(new)
    fd = frechet_distance(mu, sigma, reference)
    loss = self_normalised(fd, eps).to(at_least_float32(new[:0]))
    return loss, {"fd": fd.detach()}


def _trace_of_root(matrix: Float64[Tensor, "d d"]) -> Float64[Tensor, ""]:
    """Return the trace of the root of a symmetric matrix; negative eigenvalues count as 0.

    The mask replaces the official clamp before the root, whose derivative at 0 is infinite.
    """
    if not bool(matrix.isfinite().all()):  # eigvalsh would raise; a NaN loss is skipped by the training loop
        return matrix.sum() * torch.nan
    values = torch.linalg.eigvalsh(matrix)
    live = values > LEAST_EIGENVALUE * values[-1].detach().clamp_min(0)
    roots = torch.where(live, values, 1).sqrt()
    return torch.where(live, roots, values.detach().clamp_min(0).sqrt()).sum()


def _check_moments(mu: Tensor, sigma: Tensor, what: str) -> None:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise ValueError(f"{what}: mu {list(mu.shape)} and sigma {list(sigma.shape)}; give [D] and [D, D]")
