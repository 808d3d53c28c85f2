"""How much of a field is noise, from the field alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.fields import Image


def noise_content(fields: Image) -> Float[Tensor, " b"]:
    """Return the share of fine structure in each field, in units of white noise: about 1 for noise, 0 for smoothness.

    Fine means frequencies (fx, fy) with max(|fx|, |fy|) of at least a quarter of a cycle per pixel, half of what pixels
    can carry; they hold three quarters of white noise. Energies are sums over channels; the mean of a channel is left
    out, and a field that is constant has no fine structure.
    """
    height, width = fields.shape[2:]
    energy = torch.fft.fft2(fields.double()).abs().square().sum(1)
    energy[:, 0, 0] = 0
    fx, fy = (torch.fft.fftfreq(side, device=fields.device).abs() for side in (width, height))
    fine = torch.maximum(fy[:, None], fx[None]) >= 0.25
    expected = fine.sum() / (height * width - 1)
    total = energy.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return (energy * fine).sum((1, 2)) / total / expected
