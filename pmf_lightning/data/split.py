"""One fixed way to hold images out: evenly over the classes, the same for every seed, resolution and machine."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pmf_lightning.utils.rng import permutation


def class_quantiles(labels: Int64[Tensor, " n"], name: str) -> Float64[Tensor, " n"]:
    """Place every image at random among those of its class, as a fraction in (0, 1); keyed by ``name`` and the class.

    Sorting by this fraction makes each prefix a stratified sample: the images below f are a share f of every class,
    rounded, so any held-out share is the beginning of one and the same order.
    """
    quantiles = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        quantiles[rows] = (permutation("split", name, label, count=len(rows)).double() + 0.5) / len(rows)
    return quantiles
