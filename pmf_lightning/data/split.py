"""The held-out split: stratified by class, and the same for every seed, resolution and machine."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pmf_lightning.utils.rng import permutation


def class_quantiles(labels: Int64[Tensor, " n"], name: str) -> Float64[Tensor, " n"]:
    """Return a random quantile in (0, 1) of every image within its class, keyed by ``name`` and the class.

    After sorting by quantile, each prefix is a stratified sample: the images below f are a fraction f of every class,
    rounded. Held-out sets of all fractions are therefore prefixes of the same order.
    """
    quantiles = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        quantiles[rows] = (permutation("split", name, label, count=len(rows)).double() + 0.5) / len(rows)
    return quantiles
