"""The compiled passes: the same loss, gradients and tangents as the eager ones, tangents also by central differences.

The rest of the tests checks shapes at every call, which torch.compile cannot look through; so these run in an
interpreter of their own, without the checks.
"""

import json
import os
import subprocess
import sys

import pytest


def run(*arguments):
    """Run this file as a program and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        **{"capture_output": True, "text": True, "timeout": 550, "check": False},
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_compiled_step_equals_the_eager_one():
    found = run("step", "aot_eager")
    assert found["losses"] < 1e-12
    assert found["gradients"] < 1e-12
    assert found["names"]


@pytest.mark.slow
def test_compiled_tangents_equal_eager_ones_and_central_differences():
    found = run("tangent", "aot_eager", "plain")
    assert found["size"] > 0.1
    assert found["eager"] < 1e-12
    assert found["central"] < 1e-7


@pytest.mark.slow
def test_tangents_of_the_fast_backend():
    found = run("tangent", "inductor", "fused")
    assert found["eager"] < 1e-10
    assert found["central"] < 1e-7


def _step(backend):
    import torch
    from common import ROWS, objective, relative, rows, tiny_network

    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork

    network, goal = tiny_network(), objective(jvp="one_pass")
    compiled, names = CompiledNetwork(network, backend), list(network.state_dict())
    apart = {"losses": 0.0, "gradients": 0.0}
    for part in (slice(None), slice(1, 6)):  # other numbers of rows in every pass
        batch, draws = rows(*list(ROWS)[part])
        seen = []
        for net in (network, compiled):
            network.zero_grad()
            losses = goal(net, batch, draws)
            losses.total.backward()
            gradient = torch.cat([weight.grad.flatten() for weight in network.parameters()])
            seen.append((torch.cat(list(losses.per_sample.values())), gradient))
        for name, eager, fast in zip(apart, *seen, strict=True):
            apart[name] = max(apart[name], relative(fast, eager))
    return {**apart, "names": names == list(network.state_dict())}


def _tangent(backend, attention):
    import torch
    from common import CLASSES, normal, relative, tiny_network, uniform

    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
    from pmf_lightning.objectives.jvp.forward_mode import derivative

    network = tiny_network(attention=attention)
    z, dz, t = normal("z", shape=(4, 3, 8, 8)), normal("dz", shape=(4, 3, 8, 8)), uniform("t", count=4, low=0.3)
    ones, y = torch.ones_like(t), torch.arange(4) % CLASSES

    def of(z, t):
        conditions = {"label": y, "omega": 0.4 * ones, "t_min": 0 * ones, "t_max": ones, "h": t - 0.2 * ones}
        fields = network(z, conditions)
        return fields["u"], fields["v"]

    _, slope = CompiledNetwork(network, backend).derivative(of, (z, t), (dz, ones))
    _, eager = derivative(of, (z, t), (dz, ones))
    step = 1e-5
    with torch.no_grad():
        central = (of(z + step * dz, t + step)[0] - of(z - step * dz, t - step)[0]) / (2 * step)
    size = slope.abs().max().item()
    return {"size": size, "eager": relative(slope, eager), "central": relative(slope, central)}


if __name__ == "__main__":
    print(json.dumps({"step": _step, "tangent": _tangent}[sys.argv[1]](*sys.argv[2:])))
