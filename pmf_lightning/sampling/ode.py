"""Paths dz/dt = v(z, t) from noise to image, followed in steps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from pmf_lightning.objectives.fields import Image

Velocity = Callable[[Tensor, float], Tensor]
SOLVERS = ("heun", "euler")


def time_grid(steps: int) -> list[float]:
    """Return the ends of ``steps`` equal steps from t=1 to t=0; k/steps is the double nearest to its decimal."""
    return [k / steps for k in range(steps, -1, -1)]


def euler_step(velocity: Velocity, z: Image, t: float, s: float) -> Image:
    """Go from time t to s along the slope at t (first order)."""
    return z + (s - t) * velocity(z, t)


def heun_step(velocity: Velocity, z: Image, t: float, s: float) -> Image:
    """Go from time t to s along the mean of the slopes at t and at the end of Euler's step (second order)."""
    slope = velocity(z, t)
    return z + (s - t) / 2 * (slope + velocity(z + (s - t) * slope, s))


def solve(velocity: Velocity, z: Image, times: Sequence[float], solver: str) -> Image:
    """Follow the path over ``times``; "heun" takes its last step by Euler, since v is not asked at t=0 (JiT, code)."""
    steps = list(pairwise(times))
    for t, s in steps[:-1]:
        z = heun_step(velocity, z, t, s) if solver == "heun" else euler_step(velocity, z, t, s)
    return euler_step(velocity, z, *steps[-1])


def asked_times(times: Sequence[float], solver: str) -> list[float]:
    """Return the times at which ``solve`` asks for the velocity, with repetitions."""
    return [*times[:-1], *times[1:-1]] if solver == "heun" else list(times[:-1])


def path(velocity: Velocity, z: Image, times: Sequence[float], steps: int) -> list[Image]:
    """Return z at each of ``times``, from ``z`` at the first; ``steps`` of Heun's steps between two of them."""
    points = [z]
    for start, end in pairwise(times):
        for k in range(steps):
            t, s = (start + (end - start) * i / steps for i in (k, k + 1))
            z = heun_step(velocity, z, t, s)
        points.append(z)
    return points
