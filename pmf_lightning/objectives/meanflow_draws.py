"""The random numbers of a MeanFlow batch, and what they decide for each of its rows."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from pmf_lightning.objectives.base import Draws
from pmf_lightning.objectives.fields import Time


@dataclass(frozen=True)
class MeanFlowDraws(Draws):
    """The random numbers of one batch: each [B], noise [B,C,H,W] already scaled, t_min=0 and t_max=1 where t == r.

    ``crops`` are the boxes (top, left, height, width) of the perceptual distances, as fractions of the image; None
    without such distances. The scalars may stay on the CPU, so that selecting rows needs no device synchronisation.
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
    def r_ne_t(self) -> Bool[Tensor, " b"]:
        """The rows with t != r, which need the derivative."""
        return self.t != self.r


@dataclass(frozen=True)
class RowMasks:
    """What each row of a batch needs, [B], on the device of the scalars of its draws.

    ``moving`` rows, t != r, need du/dt. ``guided`` rows need v_u for their target. ``ask_c`` rows need v_c, which the
    training pass does not compute for them.
    """

    moving: Bool[Tensor, " b"]
    guided: Bool[Tensor, " b"]
    ask_c: Bool[Tensor, " b"]

    @classmethod
    def of(cls, draws: MeanFlowDraws, omega: Time, jvp_tangent: str) -> "RowMasks":
        """Return the masks of ``draws`` with the scales ``omega``, 1 outside the interval, and a direction of du/dt."""
        moving = draws.r_ne_t
        guided = ~draws.drop & (omega != 1)
        # The training pass of a flow-matching row with its label already computes v_c.
        answered = ~moving & (draws.t_min == 0) & (draws.t_max == 1)
        directed = moving if jvp_tangent == "network" else moving & guided  # where du/dt needs v_c
        return cls(moving, guided, ask_c=directed | (guided & ~answered))
