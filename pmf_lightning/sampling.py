"""From noise to images: the N-step sampler of MeanFlow, a pure function."""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning import draws
from pmf_lightning.precision import Number


def generate(
    module: nn.Module,
    noise: Float[Tensor, "b c h w"],
    labels: Int64[Tensor, " b"],
    steps: int = 1,
    omega: Number = 1.0,
    t_min: Number = 0.0,
    t_max: Number = 1.0,
    objective: Any = None,
) -> Float[Tensor, "b c h w"]:
    """Draw images from noise in ``steps`` evaluations of the network: z <- z - (t - r) u(z, r, t), t from 1 to 0.

    Args:
        module: a trained LightningModule (its ``network`` and ``objective`` are used), or a bare network together
            with ``objective``.
        noise: starting points, already scaled by the objective's noise_scale.
        labels: classes; the number of classes means none.
        steps: network evaluations, at least 1.
        omega, t_min, t_max: guidance scale and interval, inputs of the network; nothing is mixed here.

    Returns what the network makes, not clipped: images in about [-1, 1], or the normalised latents of a latent model,
    which ``module.to_pixels`` decodes.
    Raises ValueError for steps < 1, omega < 1 or t_min > t_max.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if omega < 1:
        raise ValueError(f"omega={omega}: the guidance scale is at least 1")
    if not 0 <= t_min <= t_max <= 1:
        raise ValueError(f"t_min={t_min}, t_max={t_max}: the interval needs 0 <= t_min <= t_max <= 1")
    network, objective = (module, objective) if objective is not None else (module.network, module.objective)
    count = len(noise)
    condition = [noise.new_full((count,), value) for value in (omega, t_min, t_max)]
    times = torch.linspace(1, 0, steps + 1, dtype=noise.dtype, device=noise.device)
    z = noise
    with torch.no_grad():
        for t, r in pairwise(times):
            u = objective.average_velocity(network, z, t.expand(count), r.expand(count), *condition, labels)
            z = z - (t - r) * u
    return z


def image_noise(seed: int, first: int, count: int, shape: tuple[int, ...]) -> Float[Tensor, "count c h w"]:
    """Draw the unit noise of images first ... first + count - 1 on the CPU; image i depends on (seed, i) alone."""
    return draws.normal_images(seed, "image", rows=torch.arange(first, first + count), shape=shape)


def numbered_images(
    module: nn.Module, labels: Int64[Tensor, " b"], seed: int, first: int, **options: Any
) -> Float[Tensor, "b c h w"]:
    """Draw a seed's images number first, first + 1, ... on the module's device; options as of ``generate``.

    They are pixels in about [-1, 1], not clipped: what a latent model makes is decoded.
    """
    network = module.network
    shape = (network.channels, network.resolution, network.resolution)
    noise = module.objective.noise_scale * image_noise(seed, first, len(labels), shape)
    return module.to_pixels(generate(module, noise.to(module.device), labels.to(module.device), **options))
