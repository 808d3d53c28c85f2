"""The random numbers that one training step of JiT is a function of."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class JiTDraws:
    """The random numbers of one batch: each [B], noise [B,C,H,W] already scaled.

    ``dropout`` keys the masks of a network that drops activations, row by row. The scalars may stay on the CPU.
    """

    t: Float[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    drop: Bool[Tensor, " b"]
    dropout: Int64[Tensor, " b"]

    def to(self, device: torch.device) -> "JiTDraws":
        """Return the draws on a device."""
        return JiTDraws(
            **{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        )
