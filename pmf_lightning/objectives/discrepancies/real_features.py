"""What is known of the real images in one encoder, from which a discrepancy makes its reference."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pmf_lightning.objectives.discrepancies.balance import check_features
from pmf_lightning.objectives.discrepancies.joint import JointLaw
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.objectives.discrepancies.populations import moment_sums
from pmf_lightning.utils.precision import Number, to_float64

NEEDS = ("moments", "rows", "nystrom")  # what a discrepancy may need; rows give the other two as well


@dataclass(frozen=True)
class RealFeatures:
    """Features of real images in one encoder: rows, moments, a Nystrom reference, or several of these.

    Args:
        encoder: its name in the battery, for error messages.
        count: the number of real images.
        rows: one row per image [n,D].
        labels: the class of each row [n].
        mu, sigma: mean [D] and covariance [D,D] over count - 1, float64; None: computed from the rows.
        nystrom: a stored reference of RDM; None: fitted to the rows.
        nystrom_scale: factor on the median bandwidth with which it was made; None: not known.
        held_out: rows of images that are not trained on [m,D], of which a controller measures its floors.
        held_out_labels: their classes [m].

    Raises ValueError for rows that are no matrix, or nothing to compare with.
    """

    encoder: str
    count: int
    rows: Float[Tensor, "..."] | None = None
    labels: Int64[Tensor, "..."] | None = None
    mu: Float64[Tensor, "..."] | None = None
    sigma: Float64[Tensor, "..."] | None = None
    nystrom: MMDReference | None = None
    nystrom_scale: Number | None = None
    held_out: Float[Tensor, "..."] | None = None
    held_out_labels: Int64[Tensor, "..."] | None = None

    def __post_init__(self):
        if self.rows is not None:
            check_features(self.rows, what=f"real features of {self.encoder}")
        elif self.mu is None and self.nystrom is None:
            raise ValueError(f"real features of {self.encoder}: neither rows, nor moments, nor a Nystrom reference")

    @property
    def width(self) -> int:
        """The number of features."""
        if self.rows is not None:
            return self.rows.shape[1]
        return self.nystrom.width if self.mu is None else len(self.mu)

    def lacks(self, needs: Collection[str]) -> list[str]:
        """Return which of ``needs``, from ``NEEDS``, are not there."""
        there = {"rows": self.rows is not None, "moments": self.mu is not None, "nystrom": self.nystrom is not None}
        return [need for need in needs if not (there[need] or there["rows"])]

    def pool(self) -> Float[Tensor, "n d"]:
        """Return the rows; ValueError without them."""
        if self.rows is None:
            raise ValueError(f"{self.encoder}: the reference has no rows of features, which this loss needs")
        return self.rows

    def moments(self) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
        """Return mean and covariance (over n - 1), float64; ValueError without moments and rows, or for one row."""
        if self.mu is not None:
            return self.mu, self.sigma
        rows = self.pool()
        if len(rows) < 2:
            raise ValueError(f"{self.encoder}: one real image has no covariance; give at least 2")
        shift = to_float64(rows[:1]).mean(0)  # less rounding than sums of features far from 0
        total, products = moment_sums(to_float64(rows) - shift)
        mean = total / len(rows)
        return mean + shift, (products - len(rows) * torch.outer(mean, mean)) / (len(rows) - 1)

    def joined(self, law: JointLaw) -> "RealFeatures":
        """Return the features of image and label together: to each row the code of its label is appended.

        Moments and a Nystrom reference of the images alone are left out. Raises ValueError without rows or labels.
        """
        if self.labels is None:
            raise ValueError(f"{self.encoder}: the reference has no labels, which the joint law needs")
        rows = law(self.pool(), self.labels)
        held_out = None if self.held_out is None else law(self.held_out, self.held_out_labels)
        return replace(self, rows=rows, mu=None, sigma=None, nystrom=None, held_out=held_out)
