"""The discrepancies of conf/discrepancy: FD-loss, RDM, and the distances of RDM's ablation (its table 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.base import Discrepancy, State, chosen_rows, picks
from pmf_lightning.objectives.discrepancies.fourier import FourierReference, fourier_loss
from pmf_lightning.objectives.discrepancies.frechet import FrechetReference, frechet_loss
from pmf_lightning.objectives.discrepancies.kernels import median_bandwidth
from pmf_lightning.objectives.discrepancies.mmd import MMDReference, mmd_loss
from pmf_lightning.objectives.discrepancies.nystrom import KMEANS_ROWS
from pmf_lightning.objectives.discrepancies.populations import FeatureEMA, FeatureQueue, Population
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sliced_loss
from pmf_lightning.objectives.drifting_field import check_temperatures
from pmf_lightning.objectives.drifting_loss import drift_loss
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

POPULATIONS = ("ema", "queue", "batch")


@dataclass(frozen=True)
class Frechet(Discrepancy):
    """The Frechet distance of FD-loss (arXiv 2604.28190), with a gradient through the new features alone.

    Args:
        population: where the moments come from: "ema", an average of moments; "queue", the last ``rows`` rows; or
            "batch", the batch alone.
        rows: images generated before the first step, and rows of the queue.
        beta: weight of past moments in the average; it has no effect on the other two.
        eps: added to the distance by which the loss is divided (c of the paper).
        ridge: added to the diagonal of both covariances, for "batch" only; RDM's ablation has 1e-6.

    Raises ValueError for values out of range.
    """

    metric: ClassVar = "fd"

    population: str
    rows: int
    beta: Number
    eps: Number
    ridge: Number = 0.0

    def __post_init__(self):
        if self.population not in POPULATIONS:
            raise ValueError(f"population={self.population} is not one of {', '.join(POPULATIONS)}")
        if self.population != "batch" and self.rows < 2:
            raise ValueError(f"rows={self.rows}: a population has at least 2")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta={self.beta}: the weight of past moments is in [0, 1); the paper's is 0.999")
        if self.ridge < 0 or (self.ridge and self.population != "batch"):
            raise ValueError(
                f"ridge={self.ridge}: it is 0 or more, and 0 for population={self.population}, which has none"
            )

    @property
    def fill(self) -> int:
        """The size of the population."""
        return 0 if self.population == "batch" else self.rows

    @property
    def least_rows(self) -> int:
        """2 without a population."""
        return 2 if self.population == "batch" else 1

    def reference(self, real: RealFeatures) -> FrechetReference:
        """Return the moments of the real features, with the root of the covariance."""
        mu, sigma = real.moments()
        ridge = self.ridge * torch.eye(len(mu), dtype=sigma.dtype)
        return FrechetReference(mu, sigma + ridge)

    def start(self, features: Tensor) -> State:
        """Return the population of the images that were generated before the first step."""
        if self.population == "batch":
            return {}
        made = FeatureQueue(features) if self.population == "queue" else FeatureEMA(features, self.beta)
        return made.state_dict()

    def loss(
        self, features: Tensor, reference: FrechetReference, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return FD / (stopgrad FD + eps), and "fd"."""
        population = None if self.population == "batch" else self._population(state)
        return frechet_loss(features, population, reference, self.eps, self.ridge)

    def advance(self, state: State, features: Tensor) -> State:
        """Return the population that the features have entered."""
        return self._population(state).updated(features).state_dict() if state else state

    def _population(self, state: State) -> Population:
        return FeatureQueue.from_state(state) if self.population == "queue" else FeatureEMA.from_state(state, self.beta)


@dataclass(frozen=True)
class MMDNystrom(Discrepancy):
    """RDM's squared MMD (arXiv 2607.02375): exact repulsion in the batch, attraction to a frozen reference.

    Args:
        landmarks: centroids of the reference, at most as many as real images.
        scale: factor on the median bandwidth.
        seed: of k-means and of the random rows of the bandwidth.
    """

    needs: ClassVar = ("nystrom",)
    metric: ClassVar = "mmd2"

    landmarks: int
    scale: Number
    seed: int = 0

    def reference(self, real: RealFeatures) -> MMDReference:
        """Return the stored reference, or one that is fitted to the rows.

        Raises ValueError for more landmarks than rows, and for a stored reference of other settings.
        """
        if real.nystrom is not None:
            stored = {"landmarks": len(real.nystrom.landmarks), "scale": real.nystrom_scale}
            for name, value in stored.items():
                if value not in (None, getattr(self, name)):
                    raise ValueError(
                        f"{real.encoder}: {name}={getattr(self, name)}, and the stored Nystrom reference was made with "
                        f"{value}; set posttrain.discrepancy.{name}={value}, or make the reference again"
                    )
            return real.nystrom
        if self.landmarks > (most := min(len(real.pool()), KMEANS_ROWS)):
            raise ValueError(
                f"{real.encoder}: landmarks={self.landmarks}: these are centroids of the real images, {most:,}; set "
                f"posttrain.discrepancy.landmarks={most} or less"
            )
        return MMDReference.fit(real.pool(), self.landmarks, self.seed, scale=self.scale)

    def loss(
        self, features: Tensor, reference: MMDReference, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return MMD^2 / (|stopgrad MMD^2| + 1e-7), and "mmd2"."""
        return mmd_loss(features, reference)


@dataclass(frozen=True)
class Bank:
    """Real rows [n,D], with the bandwidth and the mean kernel of pairs of them."""

    rows: Float[Tensor, "n d"]
    bandwidth: float = 1.0
    k_rr: float = 0.0

    def to(self, device: torch.device | str) -> "Bank":
        """Return the bank on ``device``."""
        return Bank(self.rows.to(device), self.bandwidth, self.k_rr)


@dataclass(frozen=True)
class ToRealRows(Discrepancy):
    """Base class of discrepancies to as many real rows as the batch has, drawn anew in each step."""

    needs: ClassVar = ("rows",)

    def reference(self, real: RealFeatures) -> Bank:
        """Return the rows."""
        return Bank(real.pool())

    def draw(self, rows: int, seed: int, step: int) -> dict[str, Tensor]:
        """Return the draws of the real rows."""
        return {"picks": picks(rows, seed, step)}


@dataclass(frozen=True)
class MMDExact(ToRealRows):
    """The squared MMD to real rows (RDM's ``mmd_exact``)."""

    metric: ClassVar = "mmd2"

    scale: Number

    def reference(self, real: RealFeatures) -> Bank:
        """Return the rows, with the median bandwidth."""
        bandwidth = median_bandwidth(real.pool(), scale=self.scale)
        return Bank(real.pool(), bandwidth, MMDReference.exact(real.pool(), bandwidth).k_rr)

    def loss(
        self, features: Tensor, reference: Bank, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return MMD^2 / (|stopgrad MMD^2| + 1e-7), and "mmd2"."""
        real = chosen_rows(reference.rows, draws["picks"])
        return mmd_loss(features, MMDReference.exact(real, reference.bandwidth, reference.k_rr))


@dataclass(frozen=True)
class MMDFourier(Discrepancy):
    """The squared MMD in random Fourier features (RDM's ``mmd_rff``); ``frequencies`` is their number."""

    needs: ClassVar = ("rows",)
    metric: ClassVar = "mmd2"

    frequencies: int
    scale: Number
    seed: int = 0

    def reference(self, real: RealFeatures) -> FourierReference:
        """Return the mean map of the rows at the median bandwidth."""
        bandwidth = median_bandwidth(real.pool(), scale=self.scale)
        return FourierReference.fit(real.pool(), bandwidth, self.frequencies, self.seed)

    def loss(
        self, features: Tensor, reference: FourierReference, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return MMD^2 / (stopgrad MMD^2 + 1e-7), and "mmd2"."""
        return fourier_loss(features, reference)


@dataclass(frozen=True)
class SlicedWasserstein(ToRealRows):
    """The squared sliced Wasserstein distance over fresh ``directions`` to real rows (RDM's ``sw``)."""

    metric: ClassVar = "sw2"

    directions: int

    def draw(self, rows: int, seed: int, step: int) -> dict[str, Tensor]:
        """Return the draws of the real rows, and the key of the directions."""
        return super().draw(rows, seed, step) | {"key": torch.tensor(rng.key(seed, "directions", step))}

    def loss(
        self, features: Tensor, reference: Bank, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return SW^2 / (stopgrad SW^2 + 1e-7), and "sw2"."""
        directions = sliced_directions(features.shape[1], self.directions, int(draws["key"]))
        return sliced_loss(features, chosen_rows(reference.rows, draws["picks"]), directions)


@dataclass(frozen=True)
class Drift(ToRealRows):
    """The drifting loss (arXiv 2602.04770) to real rows, without classes and negatives (RDM's ``drifting``).

    It is not normalised, and its value says nothing: ``force_norm``, the field before its normalisation, does.
    """

    metric: ClassVar = "force_norm"
    least_rows: ClassVar = 2

    temperatures: Sequence[Number]

    def __post_init__(self):
        check_temperatures(self.temperatures)

    def loss(
        self, features: Tensor, reference: Bank, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the drifting loss, and "force_norm", the mean over temperatures."""
        real = chosen_rows(reference.rows, draws["picks"]).to(features)
        loss, info = drift_loss(features[None], real[None], temperatures=self.temperatures)
        return loss.mean(), {"force_norm": info["force_norm"].mean()}
