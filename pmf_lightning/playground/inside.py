"""From one noise to its image: z, the velocity and the predicted image x along (r, t), as in figure 1 of pMF."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.fields import Image, image_from_velocity
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.playground.drawing import Settings, allowed, labels_of, unit_noise
from pmf_lightning.sampling import ode

TIMES = (1.0, 0.75, 0.5, 0.25, 0.0)
HEUN_STEPS = 6  # of the simulated path between two of these times


@dataclass(frozen=True)
class Field:
    """At one (r, t): the average velocity u, or v for r = t, and the image x = z - t u that it predicts, [C,H,W]."""

    r: float
    t: float
    u: Float[Tensor, "c h w"]
    x: Float[Tensor, "c h w"]


@dataclass(frozen=True)
class Fields:
    """The simulated z [times,C,H,W] at ``times`` (1 is noise), and the fields of the network on it.

    A network with an average velocity has a field for each r <= t with t > 0; one with a velocity only those of r = t.
    A network that makes an image in one step has no path: z is noise and image, and there are no fields.
    """

    times: Sequence[float]
    z: Image
    fields: Sequence[Field]


@torch.no_grad()
def look_inside(
    module: GenerativeModule, seed: int, label: int, settings: Settings, times: Sequence[float] = TIMES
) -> Fields:
    """Return the fields of the first image of a seed; ``times`` descend from 1 to 0. For models of pixels."""
    network, objective = module.network, module.objective
    settings = allowed(module, settings)
    labels = labels_of(label, 1, network.classes).to(module.device)
    z = (objective.noise_scale * unit_noise(module, seed, 1)).to(module.device)
    more = {k: v.to(module.device) for k, v in objective.sampling_conditions(seed, 0, 1).items()}
    guidance = (settings.omega, settings.t_min, settings.t_max)
    if "one_step" in objective.samplers:
        image = objective.one_step(network, z, labels, settings.omega, **more)
        return Fields((1.0, 0.0), torch.cat((z, image)).cpu(), [])

    def velocity(z: Tensor, t: float) -> Tensor:
        return objective.ode_velocity(network, z, t, labels, *guidance, **more)

    path = _path(velocity, z, times)
    found = []
    for number, (t, z) in enumerate(zip(times[:-1], path[:-1], strict=True)):
        for r in times[number:] if "average" in objective.samplers else (t,):
            if r == t:
                u = velocity(z, t)
            else:
                u = objective.average_velocity(network, z, *(z.new_full((1,), v) for v in (t, r, *guidance)), labels)
            x = image_from_velocity(z, u, z.new_full((1,), t))
            found.append(Field(r, t, u[0].cpu(), x[0].cpu()))
    return Fields(times, torch.cat(path).cpu(), found)


def _path(velocity: ode.Velocity, z: Image, times: Sequence[float]) -> list[Image]:
    """Return z at ``times`` by Heun's steps; the last step is by Euler, since JiT's velocity has no value at t=0."""
    *before, last = times
    points = ode.path(velocity, z, before, HEUN_STEPS)
    between = [before[-1] + (last - before[-1]) * k / HEUN_STEPS for k in range(HEUN_STEPS + 1)]
    return [*points, ode.solve(velocity, points[-1], between, "heun")]
