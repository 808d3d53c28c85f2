"""Checks of feature matrices, self-normalisation of a discrepancy, and the weighted sum over encoders."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils.precision import Number

EPS = 1e-7  # of RDM, added to the distance by which a loss is divided (compare/grad_balance.py:22)


def check_features(features: Tensor, width: int | None = None, what: str = "features") -> None:
    """Raise ValueError unless ``features`` is [rows, width] of floating-point numbers with at least one row."""
    if features.ndim != 2 or not features.numel() or not features.is_floating_point():
        kind = str(features.dtype).removeprefix("torch.")
        raise ValueError(f"{what}: {list(features.shape)} of {kind}; give floating-point rows [rows, features]")
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"{what}: {features.shape[1]} features, the reference has {width}; both must come from the same encoder"
        )


def self_normalised(value: Float[Tensor, ""], eps: Number) -> Float[Tensor, ""]:
    """Return ``value`` / (stopgrad |value| + eps): about 1 or -1, with the gradient of log(|value| + eps).

    The sign of descent is that of ``value``. FD-loss has eps = 0.01 (arXiv 2604.28190, losses.py) and RDM
    ``EPS`` (arXiv 2607.02375). The value says nothing about progress; log the raw one.
    """
    if not eps > 0:
        raise ValueError(f"eps={eps}: it is added to a distance that may be 0; give a number above 0")
    return value / (value.detach().abs() + eps)


def weighted_sum(
    losses: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, Number | Float[Tensor, ""]] | None = None
) -> Float[Tensor, ""]:
    """Return the sum over encoders of weight * loss; None means weights of 1 (trainer.py:65-78 of RDM).

    Raises ValueError unless losses and weights have the same names.
    """
    if not losses or (weights is not None and weights.keys() != losses.keys()):
        raise ValueError(f"weights of {sorted(weights or [])} for losses of {sorted(losses)}: give one for each")
    return torch.stack([loss * (1 if weights is None else weights[name]) for name, loss in losses.items()]).sum()
