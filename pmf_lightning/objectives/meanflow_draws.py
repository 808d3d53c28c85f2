"""The random numbers that one training step of MeanFlow is a function of."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class MeanFlowDraws:
    """The random numbers of one batch: each [B], noise [B,C,H,W] already scaled, t_min=0 and t_max=1 where t == r.

    ``crops`` are the boxes (top, left, height, width), in parts of the image, in which perceptual distances compare;
    None where none are asked for. The scalars may stay on the CPU: which rows need which computation is then known
    without waiting for the device.
    """

    t: Float[Tensor, " b"]
    r: Float[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    omega: Float[Tensor, " b"]
    t_min: Float[Tensor, " b"]
    t_max: Float[Tensor, " b"]
    drop: Bool[Tensor, " b"]
    crops: Float[Tensor, "b 4"] | None = None

    @property
    def moving(self) -> Bool[Tensor, " b"]:
        """The rows with t != r, where the derivative counts."""
        return self.t != self.r

    def to(self, device: torch.device) -> "MeanFlowDraws":
        """Return the draws on a device."""
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return MeanFlowDraws(**{name: value.to(device, non_blocking=True) for name, value in given.items()})
