"""MeanFlow as its papers have it: spaces in formulas, passes of the official code, and the textbook step.

The textbook step is pMF, algorithm 2 (arXiv 2601.22158), as printed and as the official code runs it: the baseline for
our own. The guided target takes three passes of trunk and v-head: v_u, v_c at the sampled scale, and v_c at the scale
inside the interval. torch.func.jvp runs over the full batch with values and graph. Attention is written out, because no
fused kernel has a forward-mode derivative. No redundant work is skipped.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pmf_lightning.objectives.base import Batch, Description, Passes
from pmf_lightning.objectives.fields import compound_velocity, expand_like, noisy_image, velocity_from_image
from pmf_lightning.objectives.guidance import adaptive_weight, guided_velocity, omega_in_interval

# The official JAX code of pMF and iMF runs trunk and v-head three times for the guided target, and every row has a
# tangent. The compiler drops unused results. The total is 136 block-forwards for pMF-B.
OFFICIAL = Passes(guidance={"trunk": 3, "v": 3}, values={"trunk": 1, "u": 1, "v": 1}, tangent={"trunk": 1, "u": 1})


def describe(objective: Any) -> Description:
    """Return the spaces of a ``PixelMeanFlow``, as formulas."""
    clipped = f"(z - x) / clip(t, {objective.t_clip:g}, 1)"
    if objective.prediction == "u":
        conversion = "u -> V"
    elif objective.preconditioner is None:
        conversion = f"x -> u = {clipped} -> V"
    else:
        name = type(objective.preconditioner).__name__
        conversion = f"F -> x = c_skip(t) z + c_out(t) F ({name}) -> u = {clipped} -> V"
    target = "e - x" if objective.v_target == "plain" else clipped
    boundary = objective.v_source == "boundary"
    return Description(
        conversion=conversion,
        target=target,
        compared=f"the guided velocity of v_t = {target}",
        velocity="v = u(z, t, t)" if boundary else "a head of its own, with its own loss",
        weights=dict(objective.perceptual),
        timed=("guidance", "derivative"),
        official=None if boundary else OFFICIAL,
    )


def textbook_loss(objective: Any, network: nn.Module, batch: Batch, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a batch's loss with the settings of a ``PixelMeanFlow``, and the sums of squares "loss_u", "loss_v" [B].

    ``draws`` are those of the objective.
    Raises ValueError for variants not in the printed algorithm: perceptual terms, another target or tangent, v at the
    boundary.
    """
    printed = {"v_target": "clipped", "v_source": "head", "jvp_tangent": "network"}
    if objective.perceptual or any(getattr(objective, name) != value for name, value in printed.items()):
        settings = ", ".join(f"{name}={value}" for name, value in printed.items())
        raise ValueError(f"the textbook step knows {settings} and no perceptual terms; choose a model with these")
    on = draws.to(batch.x.device)
    z, none = noisy_image(batch.x, on.noise, on.t), torch.full_like(batch.y, network.classes)
    v_t = velocity_from_image(z, batch.x, on.t, objective.t_clip)
    start, end, one = torch.zeros_like(on.t), torch.ones_like(on.t), torch.ones_like(on.t)

    fields_of = partial(objective.velocities, network, attention="plain", more=batch.conditions)

    def v_head(omega: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return fields_of(z, on.t, on.t, omega, start, end, y, heads=("v",))["v"]

    omega = omega_in_interval(on.t, on.omega, on.t_min, on.t_max)
    v_u = v_head(one, none)
    v_head(on.omega, batch.y)  # part of the printed algorithm, without effect on the result
    v_c = v_head(omega, batch.y)
    v_g = torch.where(expand_like(on.drop, z), v_t, guided_velocity(v_t, v_c, v_u, omega))
    y = torch.where(on.drop, none, batch.y)

    def both(z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        fields = fields_of(z, t, r, on.omega, on.t_min, on.t_max, y, heads=("u", "v"))
        return fields["u"], fields["v"]

    u, du_dt, v = torch.func.jvp(both, (z, on.t, on.r), (v_c, torch.ones_like(on.t), start), has_aux=True)
    V = compound_velocity(u, du_dt.detach(), on.t, on.r)
    sums = {"loss_u": (V - v_g).square().flatten(1).sum(1), "loss_v": (v - v_g).square().flatten(1).sum(1)}
    terms = [adaptive_weight(loss, objective.weight_power, objective.weight_eps) for loss in sums.values()]
    return sum(terms).mean(), {name: value.detach() for name, value in sums.items()}
