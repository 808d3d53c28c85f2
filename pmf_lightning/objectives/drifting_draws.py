"""Batch and random numbers of one training step of a drifting model."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class DriftingBatch:
    """Labels y [n]; for each, real images of its class x [n,P,C,H,W] and of any class, negatives [n,N,C,H,W]."""

    x: Float[Tensor, "n p c h w"]
    y: Int64[Tensor, " n"]
    negatives: Float[Tensor, "n k c h w"]


@dataclass(frozen=True)
class DriftingDraws:
    """The random numbers of ``n`` labels: alpha [n], noise [n,G,C,H,W] already scaled, style [n,G,codes]."""

    alpha: Float[Tensor, " n"]
    noise: Float[Tensor, "n g c h w"]
    style: Int64[Tensor, "n g codes"]

    def to(self, device: torch.device) -> "DriftingDraws":
        """Return the draws on a device."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return DriftingDraws(**{name: value.to(device, non_blocking=True) for name, value in given.items()})
