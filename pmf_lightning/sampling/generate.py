"""Sampling functions: noise to images by steps of the average velocity, or by solving dz/dt = v."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.objectives.sampling_options import check_guidance, chosen_sampler
from pmf_lightning.sampling.ode import SOLVERS, asked_times, solve, time_grid
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

OPTIONS = ("steps", "sampler", "omega", "t_min", "t_max")  # arguments of ``generate`` that configurations set


def generate(
    module: nn.Module,
    noise: Float[Tensor, "b c h w"],
    labels: Int64[Tensor, " b"],
    steps: int = 1,
    omega: Number = 1.0,
    t_min: Number = 0.0,
    t_max: Number = 1.0,
    sampler: str | None = None,
    objective: Any = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample images from scaled noise in ``steps`` equal steps from t=1 to 0; ``sample_images`` makes the noise too.

    Args:
        module: a trained LightningModule (its ``network`` and ``objective`` are used), or a bare network together
            with ``objective``.
        noise: initial noise, already scaled: ``module.objective.noise_scale * image_noise(...)``.
        labels: classes; the number of classes means none.
        steps: at least 1.
        omega, t_min, t_max: guidance scale and interval. MeanFlow's networks take them as inputs; JiT combines two
            predictions strictly inside the interval.
        sampler: "average", z <- z - (t - r) u(z, r, t), for networks that predict u; "heun" (the last step by Euler)
            or "euler" for dz/dt = v(z, t); "one_step", noise to image, for drifting models. None: the first of
            ``objective.samplers``.
        conditions: further conditions by name, as ``objective.sampling_conditions`` returns them.

    Returns the network's output, not clipped: images in about [-1, 1], or the normalised latents of a latent model,
    which ``module.to_pixels`` decodes.
    Raises ValueError for steps < 1 (or not 1 with "one_step"), omega < 1, t_min > t_max, or a sampler that the
    objective does not support.
    """
    network, objective = (module, objective) if objective is not None else (module.network, module.objective)
    sampler = _checked(objective, steps, omega, t_min, t_max, sampler)
    guidance, times, more = (omega, t_min, t_max), time_grid(steps), conditions or {}
    with torch.no_grad():
        if sampler == "one_step":
            return objective.one_step(network, noise, labels, omega, **more)
        if sampler != "average":
            return solve(
                lambda z, t: objective.ode_velocity(network, z, t, labels, *guidance, **more), noise, times, sampler
            )
        z, conditions = noise, [_each(noise, value) for value in guidance]
        for t, r in pairwise(times):
            u = objective.average_velocity(network, z, _each(z, t), _each(z, r), *conditions, labels, **more)
            z = z - (t - r) * u
    return z


def network_evaluations(
    objective: Any,
    steps: int = 1,
    omega: Number = 1.0,
    t_min: Number = 0.0,
    t_max: Number = 1.0,
    sampler: str | None = None,
) -> int:
    """Return the network evaluations of ``generate`` per image (NFE); a guided velocity may take two."""
    sampler = _checked(objective, steps, omega, t_min, t_max, sampler)
    times = time_grid(steps)
    asked = asked_times(times, sampler) if sampler in SOLVERS else times[:-1]
    return sum(objective.nfe_per_velocity(t, omega, t_min, t_max) for t in asked)


def _checked(objective: Any, steps: int, omega: Number, t_min: Number, t_max: Number, sampler: str | None) -> str:
    """Return the sampling method; ValueError for invalid arguments."""
    if not objective.samplers:
        raise ValueError(f"{type(objective).__name__} makes no images")
    check_guidance(omega, t_min, t_max)
    return chosen_sampler(objective.samplers, sampler, steps)


def _each(images: Tensor, value: Number) -> Tensor:
    return images.new_full((len(images),), value)


def noise_shape(network: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width of the noise of one image."""
    return (network.channels, network.resolution, network.resolution)


def image_noise(seed: int, first: int, count: int, shape: tuple[int, ...]) -> Float[Tensor, "count c h w"]:
    """Sample the unit noise of images first ... first + count - 1 on the CPU; image i depends only on (seed, i).

    It is not scaled; ``generate`` takes it times ``objective.noise_scale``.
    """
    return rng.normal_images(seed, "image", rows=torch.arange(first, first + count), shape=shape)


def numbered_images(
    module: nn.Module, labels: Int64[Tensor, " b"], seed: int, first: int, **options: Any
) -> Float[Tensor, "b c h w"]:
    """Sample images first, first + 1, ... of a seed on the module's device; options as for ``generate``.

    Returns pixels in about [-1, 1], not clipped; latents are decoded.
    """
    noise = module.objective.noise_scale * image_noise(seed, first, len(labels), noise_shape(module.network))
    options["conditions"] = module.objective.sampling_conditions(seed, first, len(labels))
    return module.to_pixels(generate(module, noise.to(module.device), labels.to(module.device), **options))


def sample_images(
    module: nn.Module,
    labels: Int64[Tensor, " n"] | Sequence[int],
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    **options: Any,
) -> Float[Tensor, "n c h w"]:
    """Sample images of classes from a loaded model, as ``python -m pmf_lightning.sample``; in [-1, 1], on the CPU.

    Args:
        module: the return value of ``load_checkpoint``, on any device.
        labels: classes from 0, one per image.
        seed, first: image i depends only on (seed, first + i) and its label.
        batch_size: images per batch.
        options: ``steps``, ``sampler``, ``omega``, ``t_min`` and ``t_max`` as for ``generate``; the defaults are the
            settings with which the model is evaluated (``module.config["sampling"]``).

    Raises TypeError for other options, ValueError as ``generate`` does.
    """
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise TypeError(f"sample_images has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}")
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if labels.dim() != 1 or not len(labels) or not ((labels >= 0) & (labels < module.network.classes)).all():
        raise ValueError(f"labels: give a list of classes from 0 to {module.network.classes - 1}, one for each image")
    judged = module.config.get("sampling", {})
    options = {name: judged.get(name) if options.get(name) is None else options[name] for name in OPTIONS}
    starts = range(0, len(labels), batch_size)
    parts = (numbered_images(module, labels[i : i + batch_size], seed, first + i, **options) for i in starts)
    return torch.cat([part.clamp(-1, 1).cpu() for part in parts])
