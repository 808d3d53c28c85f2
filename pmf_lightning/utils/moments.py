"""Check moments of features that were read from a file."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

MOST_BYTES = 2**29  # of an array of numbers (8192 features)
SYMMETRY = 1e-6  # largest asymmetry of a covariance, relative to its largest entry


def checked_moments(mu: Any, sigma: Any) -> tuple[Float64[Tensor, " f"], Float64[Tensor, "f f"]]:
    """Return mean and covariance in float64, the latter exactly symmetric; ValueError if they are invalid."""
    mu, sigma = np.asarray(mu), np.asarray(sigma)
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"mean and covariance are {mu.dtype} and {sigma.dtype}, not floats")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"mean {mu.shape} and covariance {sigma.shape} do not match")
    if sigma.size * 8 > MOST_BYTES or not len(mu):
        raise ValueError(f"its mean has {len(mu)} numbers, outside the supported range")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("some of its numbers are not finite; get or make it again")
    if np.abs(sigma - sigma.T).max() > SYMMETRY * np.abs(sigma).max():
        raise ValueError("its covariance is not symmetric; get or make it again")
    if not np.trace(sigma) > 0 or (np.diag(sigma) < 0).any():
        raise ValueError("its covariance has no positive trace; get or make it again")
    return torch.from_numpy(mu), torch.from_numpy((sigma + sigma.T) / 2)
