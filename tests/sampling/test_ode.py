"""The solvers: against torchdiffeq on a known field, their orders, and the times they ask for."""

import math

import pytest
import torch
import torchdiffeq

from pmf_lightning.sampling.ode import asked_times, path, solve, time_grid
from pmf_lightning.utils import rng

Z = rng.normal("tests", "ode", count=24).reshape(2, 3, 2, 2)
TURN = torch.linalg.qr(rng.normal("tests", "turn", count=9).reshape(3, 3))[0]


def swirl(z, t):
    """Mix the channels, and damp by time: not linear in z."""
    return torch.einsum("ij,bjhw->bihw", TURN, z) * (1 + t) - 0.3 * torch.sin(z) * t


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_as_torchdiffeq(solver, steps):
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    theirs = Z
    if steps > 1 or solver == "euler":
        name = {"heun": "heun2", "euler": "euler"}[solver]
        inner = times if solver == "euler" else times[:-1]
        theirs = torchdiffeq.odeint(lambda t, z: swirl(z, t), Z, inner, method=name)[-1]
    if solver == "heun":  # the last step is Euler's
        theirs = torchdiffeq.odeint(lambda t, z: swirl(z, t), theirs, times[-2:], method="euler")[-1]
    ours = solve(swirl, Z, time_grid(steps), solver)
    assert (ours - theirs).abs().max() < 1e-12


def test_orders():
    """Errors of the last whole steps fall with the square of the step for Heun, with the step for Euler."""
    exact = math.exp(-1) * Z

    def field(z, t):
        return z * 2 * t

    def error(solver, steps):
        return (solve(field, Z, time_grid(steps), solver) - exact).abs().max()

    assert error("euler", 20) / error("euler", 40) == pytest.approx(2, rel=0.1)
    assert error("heun", 20) / error("heun", 40) == pytest.approx(4, rel=0.3)
    assert error("heun", 20) < 0.1 * error("euler", 20)


def test_grid_hits_decimals_exactly():
    assert time_grid(50)[5] == 0.9
    assert time_grid(10) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert time_grid(1) == [1.0, 0.0]


@pytest.mark.parametrize(("solver", "steps", "count"), [("heun", 50, 99), ("heun", 1, 1), ("euler", 50, 50)])
def test_asked_times_are_those_that_are_asked(solver, steps, count):
    asked = []
    solve(lambda z, t: asked.append(t) or z, Z, time_grid(steps), solver)
    assert len(asked) == count
    assert sorted(asked) == sorted(asked_times(time_grid(steps), solver))
    assert 0.0 not in asked


def test_path_goes_through_its_times():
    points = path(lambda z, t: 2 * t * z, Z, [1.0, 0.5, 0.0], 64)
    assert len(points) == 3
    for t, z in zip((1.0, 0.5, 0.0), points, strict=True):
        assert torch.allclose(z, Z * math.exp(t * t - 1), rtol=1e-3)
