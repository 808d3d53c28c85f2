"""The average velocity u and its total derivative du/dt along (dz/dt, dt/dt, dr/dt) = (tangent, 1, 0).

du/dt is only needed where t != r and carries no gradient. Two forms give the same numbers:

one_pass  torch.func.jvp over the rows that need it, value and derivative together, under autograd. Least arithmetic;
          the graph of the derivative is kept in memory, and activation checkpointing does not work inside it.
two_pass  an ordinary differentiable pass over all rows, then the derivative alone without a graph. The values of the
          rows with a derivative are computed twice, but the differentiable pass may use fused attention and
          checkpointing, and memory is that of ordinary training.

No fused attention kernel has a forward-mode derivative, so the derivative always asks for plain attention.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmf_lightning.fields import Image, Time

Form = Literal["one_pass", "two_pass"]


@runtime_checkable
class Velocities(Protocol):
    """(u, v) of the rows selected by an index, as a function of z, t, r; v is None where it was not asked for."""

    def __call__(
        self, z: Tensor, t: Tensor, r: Tensor, rows: Tensor | slice, with_v: bool, attention: str | None
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate; z, t and r are already restricted to the rows, everything else is not."""
        ...


def velocities_and_derivative(
    velocities: Velocities, z: Image, t: Time, r: Time, tangent: Float[Tensor, "moving c h w"], moving: Bool[Tensor, " b"], form: Form
) -> tuple[Image, Image, Image]:
    """Return (u, v, du_dt) of every row, [B,C,H,W]; du_dt is zero where ``moving`` is False and has no gradient.

    ``tangent`` holds dz/dt of the moving rows only, in their order.
    """
    rows = moving.nonzero().squeeze(1).to(z.device, non_blocking=True)
    still = (~moving).nonzero().squeeze(1).to(z.device, non_blocking=True)
    if not len(rows):
        u, v = velocities(z, t, r, slice(None), True, None)
        return u, v, torch.zeros_like(u)
    return (_one_pass if form == "one_pass" else _two_pass)(velocities, z, t, r, tangent, rows, still)


def _two_pass(velocities, z, t, r, tangent, rows, still):
    u, v = velocities(z, t, r, slice(None), True, None)
    with torch.no_grad():
        _, derivative, _ = _jvp(velocities, z, t, r, tangent, rows, with_v=False)
    return u, v, torch.zeros_like(u).index_copy(0, rows, derivative.to(u.dtype))


def _one_pass(velocities, z, t, r, tangent, rows, still):
    u, derivative, v = _jvp(velocities, z, t, r, tangent, rows, with_v=True)
    du_dt = torch.zeros_like(z).index_copy(0, rows, derivative.detach().to(z.dtype))
    if len(still):
        u_still, v_still = velocities(z[still], t[still], r[still], still, True, None)
        place = torch.argsort(torch.cat((rows, still)))
        u, v = torch.cat((u, u_still))[place], torch.cat((v, v_still))[place]
    return u, v, du_dt


def _jvp(velocities, z, t, r, tangent, rows, with_v):
    """Return u, du_dt and v of ``rows``."""

    def u_of(z, t, r):
        u, v = velocities(z, t, r, rows, with_v, "plain")
        return u, (v if with_v else ())

    z, t, r = z[rows], t[rows], r[rows]
    return torch.func.jvp(u_of, (z, t, r), (tangent, torch.ones_like(t), torch.zeros_like(r)), has_aux=True)
