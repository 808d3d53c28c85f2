"""How far two sets of points are from each other."""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning import draws


def directions(seed: int, count: int, dimension: int) -> Float[Tensor, "count dimension"]:
    """Return unit vectors, uniform on the sphere."""
    normal = draws.normal(seed, "directions", count=count * dimension).reshape(count, dimension)
    return normal / normal.norm(dim=1, keepdim=True)


def sliced_wasserstein(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], along: Float[Tensor, "k d"]
) -> Float[Tensor, ""]:
    """Return the mean over the unit vectors ``along`` of the 1-Wasserstein distance of the two sets' projections.

    On a line the best pairing is that of the sorted points (Bonneel et al. 2015).
    """
    a, b = (points.to(along.dtype) @ along.T for points in (a, b))
    return (a.sort(dim=0).values - b.sort(dim=0).values).abs().mean()


def nearest(points: Float[Tensor, "n d"], data: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the mean distance of ``points`` from the nearest of ``data``: small where they lie on the data's support.

    It says nothing of how much of the support they cover.
    """
    return torch.cdist(points, data).min(dim=1).values.mean()
