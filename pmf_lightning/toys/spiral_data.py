"""Data and scores of RDM's toy: a spiral in the plane (arXiv 2607.02375, figure 3; toy/spiral.py).

At t from 0 to 1 the curve has a radius that grows from ``inner`` to ``outer`` and an angle of ``turns`` full turns.
Points are the curve at uniform t plus Gaussian noise.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

Points = Float[Tensor, "n 2"]


@dataclass(frozen=True)
class Spiral:
    """The curve, and the standard deviation ``noise`` of the points around it, per coordinate."""

    inner: Number
    outer: Number
    turns: Number
    noise: Number

    def at(self, t: Float[Tensor, " n"]) -> Points:
        """Return the points of the curve without noise, in the dtype of ``t``."""
        radius, angle = self.inner + (self.outer - self.inner) * t, 2 * math.pi * self.turns * t
        return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)

    def curve(self, count: int) -> Points:
        """Return ``count`` points of the curve at equal steps of t, both ends included, float32."""
        return self.at(torch.linspace(0, 1, count, dtype=torch.float64)).float()

    def points(self, seed: int, name: str, count: int) -> Points:
        """Sample ``count`` noisy points, float32."""
        normal = rng.normal(seed, name, "normal", count=2 * count).view(count, 2)
        return (self.at(rng.uniform(seed, name, "t", count=count)) + self.noise * normal).float()


def scores(points: Points, spiral: Spiral, anchors: int, near: Number, curve: int) -> dict[str, float]:
    """Return ``recall`` and ``median_distance`` of generated points.

    ``recall``: the share of ``anchors`` points of the curve that have a generated point nearer than ``near``.
    ``median_distance``: that of generated points from the nearest of ``curve`` points of the curve. Both are
    in the units of the data. The median is the lower middle value of an even count.
    """
    missed = torch.cdist(spiral.curve(anchors), points).min(dim=1).values
    away = torch.cdist(points, spiral.curve(curve)).min(dim=1).values
    return {"recall": (missed < near).double().mean().item(), "median_distance": away.median().item()}
