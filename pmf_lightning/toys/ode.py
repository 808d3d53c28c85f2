"""Paths dz/dt = v(z, t) from noise to image, followed in many small steps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pmf_lightning.fields import Image


def ode_path(velocity: Callable[[Tensor, float], Tensor], z: Image, times: Sequence[float], steps: int) -> list[Image]:
    """Return z at each of ``times``, from ``z`` at the first; ``steps`` steps of Heun's method between two of them.

    Heun: Euler's step, then the mean of the slopes at both ends (second order).
    """
    path = [z]
    for start, end in pairwise(times):
        for t, s in pairwise(torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()):
            slope = velocity(z, t)
            z = z + (s - t) / 2 * (slope + velocity(z + (s - t) * slope, s))
        path.append(z)
    return path
