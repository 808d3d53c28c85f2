"""Populations of generated features: moments of many rows, with a gradient through the newest rows alone.

FD-loss (arXiv 2604.28190; official code frechet_distance/queue.py) estimates the moments of the generator from a large
population: the last N rows (``FeatureQueue``), or an exponential average of moments (``FeatureEMA``). Both are
functional: ``statistics`` reads, ``updated`` returns another population. Sums are float64. A non-finite row stays in
the moments, so callers skip ``updated`` for it.
"""

import copy
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import check_features
from pmf_lightning.utils.precision import Number, at_least_float32, to_float64

Moments = tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]
BLOCK = 1024  # rows whose outer products are summed at once


@runtime_checkable
class Population(Protocol):
    """Moments of past features; ``width`` is the number of features."""

    width: int

    def statistics(self, new: Float[Tensor, "..."]) -> Moments:
        """Return (mean [D], covariance [D,D]) that include the rows ``new`` [n,D]; the gradient is theirs alone."""
        ...

    def updated(self, new: Float[Tensor, "..."]) -> "Population":
        """Return the population after the rows ``new`` [n,D] have entered, without their graph."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as plain tensors, for ``from_state``."""
        ...


class FeatureQueue:
    """The newest N rows of features, first in, first out, with float64 sums of the rows and of their outer products.

    N, the number of rows of ``features`` [N,D], is constant: new rows replace the oldest ones before the statistic is
    computed (queue.py:87-125). The covariance is divided by N-1. The sums follow the rows, so a step computes n outer
    products and not N (the official flag --fd_online_accum); the statistic is the same function of the rows. Rows are
    stored in the dtype of ``features``, at least float32.

    Raises ValueError for fewer than two rows, and in its methods for more rows than N or other features.
    """

    def __init__(self, features: Float[Tensor, "..."]):
        check_features(features, what="FeatureQueue")
        if len(features) < 2:
            raise ValueError("FeatureQueue: one row has no covariance; give at least 2")
        self._set(at_least_float32(features.detach()).clone())
        self._total, self._products = moment_sums(self.features)

    def _set(self, features: Tensor) -> None:
        self.features = features  # oldest first
        self.rows, self.width = features.shape

    def statistics(self, new: Float[Tensor, "..."]) -> Moments:
        """Return (mean [D], covariance [D,D] over N-1) after the rows ``new`` [n,D] replace the n oldest, float64."""
        total, products = self._sums_with(self._checked(new))
        mean = total / self.rows
        return mean, (products - self.rows * torch.outer(mean, mean)) / (self.rows - 1)

    @torch.no_grad()
    def updated(self, new: Float[Tensor, "..."]) -> "FeatureQueue":
        """Return the queue in which the rows ``new`` [n,D] have replaced the n oldest."""
        new = self._checked(new.detach())
        other = copy.copy(self)
        other._total, other._products = self._sums_with(new)
        other._set(torch.cat((self.features[len(new) :], new)))
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rows, oldest first, and both sums; a queue made of them gives the same bits."""
        return {"features": self.features, "total": self._total, "products": self._products}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "FeatureQueue":
        """Return the queue of a ``state_dict``, whose tensors it keeps and does not change."""
        queue = cls.__new__(cls)
        queue._set(state["features"])
        queue._total, queue._products = state["total"], state["products"]
        return queue

    def to(self, device: torch.device | str) -> "FeatureQueue":
        """Return the queue on ``device``."""
        return FeatureQueue.from_state({name: value.to(device) for name, value in self.state_dict().items()})

    def _checked(self, new: Tensor) -> Tensor:
        check_features(new, self.width, "new features")
        if len(new) > self.rows:
            raise ValueError(
                f"population of {self.rows} rows, batch of {len(new)}: the population must be at least as large"
            )
        return new.to(self.features.dtype)

    def _sums_with(self, new: Tensor) -> Moments:
        oldest = self.features[: len(new)].clone()  # in new memory, so that equal rows give equal bits
        old_total, old_products = moment_sums(oldest)
        new_total, new_products = moment_sums(new)
        return self._total - old_total + new_total, self._products - old_products + new_products


class FeatureEMA:
    """Exponential average of the mean and of the second moment E[x x^T] of features (the official flag --fd_ema_beta).

    The average starts from the moments of ``features`` [N,D]. With the new rows, mean = beta * mean + (1 - beta) *
    mean(new), the second moment likewise, and covariance = second - mean mean^T, without N-1 (queue.py). The window is
    about 1 / (1 - beta) batches; 0.999 is the paper's. With beta 0, only the batch counts.

    Raises ValueError for beta outside [0, 1), and in its methods for other features.
    """

    def __init__(self, features: Float[Tensor, "..."], beta: Number):
        check_features(features, what="FeatureEMA")
        total, products = moment_sums(features.detach())
        self._set(total / len(features), products / len(features), beta)

    def _set(self, mean: Tensor, second: Tensor, beta: Number) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: the weight of past moments is in [0, 1); the paper's is 0.999")
        self._mean, self._second, self.beta, self.width = mean, second, beta, len(mean)

    def statistics(self, new: Float[Tensor, "..."]) -> Moments:
        """Return (mean [D], covariance [D,D]) that include the rows ``new`` [n,D], float64."""
        mean, second = self._moments_with(new)
        return mean, second - torch.outer(mean, mean)

    @torch.no_grad()
    def updated(self, new: Float[Tensor, "..."]) -> "FeatureEMA":
        """Return the averages after the rows ``new`` [n,D]."""
        other = copy.copy(self)
        other._mean, other._second = self._moments_with(new)
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages; with the same ``beta``, an average made of them gives the same bits."""
        return {"mean": self._mean, "second": self._second}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], beta: Number) -> "FeatureEMA":
        """Return the averages of a ``state_dict``, whose tensors it keeps and does not change."""
        average = cls.__new__(cls)
        average._set(state["mean"], state["second"], beta)
        return average

    def to(self, device: torch.device | str) -> "FeatureEMA":
        """Return the averages on ``device``."""
        state = {name: value.to(device) for name, value in self.state_dict().items()}
        return FeatureEMA.from_state(state, self.beta)

    def _moments_with(self, new: Tensor) -> Moments:
        check_features(new, self.width, "new features")
        total, products = moment_sums(new)
        old, share = self.beta, (1 - self.beta) / len(new)
        return old * self._mean + share * total, old * self._second + share * products


def batch_statistics(features: Float[Tensor, "..."], ridge: Number = 0.0) -> Moments:
    """Return (mean [D], covariance [D,D] over n-1) of the rows of a batch alone, float64.

    ``ridge`` is added to the diagonal; RDM's batch distance (its ``fd`` ablation) adds 1e-6. Raises ValueError for
    one row.
    """
    check_features(features)
    if len(features) < 2:
        raise ValueError("a batch of 1 has no covariance; give a population, or at least 2 rows")
    rows = to_float64(features)
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.mT @ centred / (len(rows) - 1)
    return mean, covariance + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)


def moment_sums(rows: Float[Tensor, "n d"]) -> Moments:
    """Return the sum of the rows [D] and of their outer products [D,D], float64."""
    blocks = [to_float64(block) for block in rows.split(BLOCK)]
    total = blocks[0].sum(0)
    products = blocks[0].mT @ blocks[0]
    for block in blocks[1:]:
        total = total + block.sum(0)
        products = products + block.mT @ block
    return total, products
