"""Compiled blocks: the same loss, gradients and tangents as eager ones, no version of a block more than it needs.

The rest of the tests checks shapes at every call, which torch.compile cannot look through; so these run in an
interpreter of their own, without the checks.
"""

import json
import re
import sys

import pytest
from processes import python

pytestmark = pytest.mark.slow
TINY = ["backbone.width=32", "backbone.num_heads=2", "backbone.mlp_dim=48"]
MEANFLOW = [*TINY, "backbone.heads={u: 1, v: 1}"]
OWN = [*TINY, "data=digits", "data.channels=3", "data.resolution=32", "backbone.patch=8"]
# Overrides of a tiny model, its depths, and the compiled versions of its blocks, whatever the depth.
MODELS = {
    # guidance without graph, rows with t == r, rows with t != r and their tangents
    "pMF": (["model=pmf_digits", *MEANFLOW], (1, 3), 3),
    "iMF": (["model=imf_digits", *MEANFLOW], (1, 3), 3),
    # the same without tangents, which are computed eagerly
    "pMF, checkpointing": (["model=pmf_digits", "activation_checkpointing=true", *MEANFLOW], (1, 3), 2),
    # with and without class tokens, each with and without dropout
    "JiT": (["model=jit_b16", "backbone.context=2", "backbone.dropout=0.1", "backbone.bottleneck=8", *OWN], (4, 8), 4),
    "Drifting": (["model=drifting_b16", *OWN], (2, 4), 1),
}
STEPS = 50


def run(*arguments):
    """Run this file as a program and return the numbers that it prints."""
    done = python(__file__, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.findall(r"^W\d{4} .*", done.stderr, re.MULTILINE), "torch warns the user of its own parts"
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("model", MODELS)
def test_blocks_are_compiled_once_for_any_depth_and_any_number_of_rows(model):
    versions = MODELS[model][2]
    for first, last in run("versions", "aot_eager", model):
        assert first == last == versions


@pytest.mark.parametrize("model", [model for model in MODELS if "," not in model])
def test_a_step_of_the_fast_backend(model):
    found = run("model_step", "inductor", model)
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5
    assert found["recompiled"] == 0


def test_compiled_step_equals_the_eager_one():
    found = run("step", "aot_eager")
    assert found["losses"] < 1e-12
    assert found["gradients"] < 1e-12
    assert found["names"]


def test_compiled_tangents_equal_eager_ones_and_central_differences():
    found = run("tangent", "aot_eager", "plain")
    assert found["size"] > 0.1
    assert found["eager"] < 1e-12
    assert found["central"] < 1e-7


def test_tangents_of_the_fast_backend():
    found = run("tangent", "inductor", "fused")
    assert found["eager"] < 1e-10
    assert found["central"] < 1e-7


def _benches(model, backend):
    """Yield the benchmark of a step at each depth of ``MODELS``, its blocks compiled."""
    from dataclasses import replace

    import torch

    from pmf_lightning import build, compose
    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
    from pmf_lightning.profiling.benchmarks.step import make_bench

    overrides, depths, _ = MODELS[model]
    for depth in depths:
        start = [f"backbone.context_start={depth // 2}"] if model == "JiT" else []
        module = build(compose([*overrides, f"backbone.depth={depth}", *start]))
        bench = make_bench(module, 6, torch.device("cpu"), "32-true", False, 0, (2, 2))
        yield replace(bench, compiled_network=CompiledNetwork(bench.network, backend))


def _graphs():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _versions(backend, model):
    """Return the versions of a block that exist after two steps, and after all, for each depth."""
    import torch

    found = []
    for bench in _benches(model, backend):
        torch._dynamo.reset()
        before, seen = _graphs(), []
        for step in range(STEPS):
            bench.gradients(lambda bench=bench, step=step: bench.loss(step))
            seen.append(_graphs() - before)
        found.append((seen[1], seen[-1]))
    return found


def _model_step(backend, model):
    from dataclasses import replace

    from common import relative

    bench = next(_benches(model, backend))
    eager = replace(bench, compiled_network=bench.network)
    apart, graphs = {"loss": 0.0, "gradients": 0.0}, []
    for step in range(4):
        losses = [one.loss(step) for one in (eager, bench)]
        gradients = [one.gradients(lambda one=one: one.loss(step)) for one in (eager, bench)]  # noqa: B023
        for name, (slow, fast) in zip(apart, (losses, gradients), strict=True):
            apart[name] = max(apart[name], relative(fast, slow))
        graphs.append(_graphs())
    return {**apart, "recompiled": graphs[-1] - graphs[1]}


def _step(backend):
    import torch
    from common import ROWS, objective, relative, rows, tiny_network

    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork

    network, goal = tiny_network(), objective(jvp="one_pass")
    compiled, names = CompiledNetwork(network, backend), list(network.state_dict())
    apart = {"losses": 0.0, "gradients": 0.0}
    for part in (slice(None), slice(1, 6), slice(1, 3)):  # other numbers of rows in every pass, one at last
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

    def of(network, heads):
        def fields(z, t):
            conditions = {"label": y, "omega": 0.4 * ones, "t_min": 0 * ones, "t_max": ones, "h": t - 0.2 * ones}
            found = network(z, conditions, heads=("u", "v"))
            return tuple(found[head] for head in heads)

        return fields

    compiled, pairs = CompiledNetwork(network, backend), []
    for heads in (("u", "v"), ("u", "v"), ("v", "u")):  # the last needs tangents that were not needed before
        pairs.append([derivative(of(net, heads), (z, t), (dz, ones))[1] for net in (compiled, network)])
    step, exact = 1e-5, of(network, ("u",))
    with torch.no_grad():
        central = (exact(z + step * dz, t + step)[0] - exact(z - step * dz, t - step)[0]) / (2 * step)
    size, slope = pairs[0][0].abs().max().item(), pairs[1][0]
    return {"size": size, "eager": max(relative(*pair) for pair in pairs), "central": relative(slope, central)}


if __name__ == "__main__":
    parts = {"step": _step, "tangent": _tangent, "versions": _versions, "model_step": _model_step}
    print(json.dumps(parts[sys.argv[1]](*sys.argv[2:])))
