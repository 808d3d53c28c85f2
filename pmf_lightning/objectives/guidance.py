"""Classifier-free guidance in training: distribution of the scale, guidance interval and guided target."""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.fields import Image, expand_like
from pmf_lightning.utils.precision import Number

PerSample = Float[Tensor, " b"]


def guidance_scale(uniform: PerSample, omega_max: Number, beta: Number, omega_min: Number = 1.0) -> PerSample:
    """Return omega in [omega_min, omega_max], density proportional to omega^-beta, by inversion of ``uniform``.

    pMF and iMF, official code, with omega_min=1: beta=1 gives omega_max^U; beta=2 with omega_max=8 gives
    1 / (1 - 7U/8). A constant scale, omega_min = omega_max, is the original MeanFlow's guidance; iMF made the scale a
    condition.
    """
    top = torch.as_tensor(omega_max / omega_min, dtype=uniform.dtype, device=uniform.device).log()
    if beta == 1:
        return omega_min * torch.exp(uniform * top)
    power = 1 - beta
    return omega_min * torch.exp(torch.log1p(uniform * torch.expm1(power * top)) / power)


def omega_in_interval(t: PerSample, omega: PerSample, t_min: PerSample, t_max: PerSample) -> PerSample:
    """Return omega inside t_min <= t <= t_max and 1 (no guidance) outside."""
    return torch.where((t_min <= t) & (t <= t_max), omega, torch.ones_like(omega))


def guided_velocity(v_t: Image, v_c: Image, v_u: Image, omega: PerSample) -> Image:
    """Return v_g = v_t + (1 - 1/omega)(v_c - v_u) (iMF, eq. 17; pMF, official code)."""
    return v_t + expand_like(1 - 1 / omega, v_t) * (v_c - v_u)


def adaptive_weight(loss: Float[Tensor, " b"], power: Number, eps: Number) -> Float[Tensor, " b"]:
    """Return L / stop_gradient((L + eps)^power) per sample (MeanFlow).

    With power 1 the value is always 1 up to eps; monitor the plain squared errors instead.
    """
    return loss / (loss.detach() + eps) ** power
