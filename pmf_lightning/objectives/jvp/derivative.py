"""The average velocity u and its total derivative du/dt along (dz/dt, dt/dt, dr/dt) = (tangent, 1, 0).

du/dt is only needed where t != r and carries no gradient. Two forms give the same numbers:

one_pass  One pass over the rows that need du/dt computes values with their graph and the derivative without one (see
          forward_mode.py); a separate pass computes the other rows. Least arithmetic. The network may only use
          operations with a rule in forward_rules.py, which include fused attention.
two_pass  A differentiable pass over all rows, then torch.func.jvp over the rows that need du/dt, without a graph and
          with plain attention, since no fused kernel has a forward-mode derivative there. Works for any network, and
          with activation checkpointing in the differentiable pass. The values of those rows are computed twice.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.profiler import record_function

from pmf_lightning.objectives.fields import Image, Time, rows_of
from pmf_lightning.objectives.jvp.forward_mode import derivative

Form = Literal["one_pass", "two_pass"]


@runtime_checkable
class VelocityFunction(Protocol):
    """(u, v) of the rows selected by an index, as a function of z, t, r; v is None if it was not requested."""

    def __call__(
        self, z: Tensor, t: Tensor, r: Tensor, rows: Tensor | slice, with_v: bool, attention: str | None
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate; z, t and r are already restricted to the rows, all other inputs are not."""
        ...


def velocities_and_derivative(
    velocities: VelocityFunction,
    z: Image,
    t: Time,
    r: Time,
    tangent: Float[Tensor, "moving c h w"],
    moving: Bool[Tensor, " b"],
    form: Form,
) -> tuple[Image, Image, Image]:
    """Return (u, v, du_dt) of every row, [B,C,H,W]; du_dt is zero where ``moving`` is False and has no gradient.

    ``tangent`` holds dz/dt of the moving rows only, in their order.
    """
    rows, still = rows_of(moving, z), rows_of(~moving, z)
    if not len(rows):
        u, v = velocities(z, t, r, slice(None), True, None)
        return u, v, torch.zeros_like(u)
    if form == "two_pass":
        return _two_pass(velocities, z, t, r, tangent, rows)
    return _one_pass(velocities, z, t, r, tangent, rows, still)


def _two_pass(velocities, z, t, r, tangent, rows):
    u, v = velocities(z, t, r, slice(None), True, None)

    def of(z, t, r):
        return velocities(z, t, r, rows, False, "plain")[0]

    z, t, r = z[rows], t[rows], r[rows]
    with torch.no_grad(), record_function("derivative"):
        _, slope = torch.func.jvp(of, (z, t, r), (tangent, torch.ones_like(t), torch.zeros_like(r)))
    return u, v, torch.zeros_like(u).index_copy(0, rows, slope.to(u.dtype))


def _one_pass(velocities, z, t, r, tangent, rows, still):
    def of(z, t):
        return velocities(z, t, r[rows], rows, True, None)

    (u, v), slope = derivative(of, (z[rows], t[rows]), (tangent, torch.ones_like(t[rows])))
    du_dt = torch.zeros_like(z).index_copy(0, rows, slope.to(z.dtype))
    if len(still):
        u_still, v_still = velocities(z[still], t[still], r[still], still, True, None)
        place = torch.argsort(torch.cat((rows, still)))
        u, v = torch.cat((u, u_still))[place], torch.cat((v, v_still))[place]
    return u, v, du_dt
