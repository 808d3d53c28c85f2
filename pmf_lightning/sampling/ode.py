"""ODE solvers for dz/dt = v(z, t) from noise to image."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from pmf_lightning.objectives.fields import Image

Velocity = Callable[[Tensor, float], Tensor]
SOLVERS = ("heun", "euler")


def time_grid(steps: int) -> list[float]:
    """Return the ends of ``steps`` equal steps from t=1 to t=0, each the double nearest to k/steps."""
    return [k / steps for k in range(steps, -1, -1)]


def euler_step(velocity: Velocity, z: Image, t: float, s: float) -> Image:
    """Take an Euler step from time t to s (first order)."""
    return z + (s - t) * velocity(z, t)


def heun_step(velocity: Velocity, z: Image, t: float, s: float) -> Image:
    """Take a Heun step from time t to s: mean of the velocities at t and after the Euler step (second order)."""
    slope = velocity(z, t)
    return z + (s - t) / 2 * (slope + velocity(z + (s - t) * slope, s))


def solve(velocity: Velocity, z: Image, times: Sequence[float], solver: str) -> Image:
    """Solve the ODE over ``times``; the last step of "heun" is by Euler, so v is not evaluated at t=0 (JiT, code)."""
    steps = list(pairwise(times))
    for t, s in steps[:-1]:
        z = heun_step(velocity, z, t, s) if solver == "heun" else euler_step(velocity, z, t, s)
    return euler_step(velocity, z, *steps[-1])


def asked_times(times: Sequence[float], solver: str) -> list[float]:
    """Return the times at which ``solve`` evaluates the velocity, with repetitions."""
    return [*times[:-1], *times[1:-1]] if solver == "heun" else list(times[:-1])


def path(velocity: Velocity, z: Image, times: Sequence[float], steps: int) -> list[Image]:
    """Return z at each of ``times``, starting with ``z`` at the first, with ``steps`` Heun steps between two times."""
    points = [z]
    for start, end in pairwise(times):
        for k in range(steps):
            t, s = (start + (end - start) * i / steps for i in (k, k + 1))
            z = heun_step(velocity, z, t, s)
        points.append(z)
    return points
