"""FSDP with compiled blocks: the numbers of eager ones, also with activation checkpointing, and no version more.

The rest of the tests checks shapes at every call, which torch.compile cannot look through; so these run in an
interpreter of their own, without the checks.
"""

import json
import sys

import pytest
import torch
from processes import python
from torch import nn

pytestmark = pytest.mark.slow
COUNT, STEPS = 6, 2


def run(*arguments):
    """Run this file as a program and return the numbers that it prints."""
    done = python(__file__, *arguments, TORCHINDUCTOR_COMPILE_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_two_processes_train_as_without_the_compiler(checkpointing, tmp_path):
    found = run("train", "aot_eager", checkpointing, str(tmp_path))
    assert found["compiled"] >= 2
    assert found["losses"] < 1e-5
    assert found["gradients"] < 1e-5
    assert found["weights"] < 1e-5


def test_sharded_blocks_share_a_version_only_if_they_are_of_one_kind():
    found = run("versions", "aot_eager")
    assert found["apart"] < 1e-6
    assert found["first"] == found["last"] == 3  # two kinds of blocks, and the first block, whose input has no graph


def _fitted(folder, backend, *overrides):
    """On one rank: train; return what happened and the number of compiled versions."""
    from functools import partial

    from torch._dynamo.utils import counters
    from training import fit

    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
    from pmf_lightning.pipeline import module

    module.CompiledNetwork = partial(CompiledNetwork, backend=backend)
    done = fit("pmf_tiny", folder, "trainer=fsdp", f"steps={STEPS}", *overrides, at=(STEPS,))
    return done, counters["stats"]["unique_graphs"]


def _train(backend, checkpointing, folder):
    from ranks import together

    more = [f"activation_checkpointing={checkpointing}"]
    (eager, none), _ = together(2, _fitted, f"{folder}/eager", backend, *more, timeout=700)
    (fast, graphs), _ = together(2, _fitted, f"{folder}/fast", backend, *more, "compile=true", timeout=700)
    assert none == 0
    pairs = {
        "gradients": (eager.gradients[1], fast.gradients[1]),
        "weights": (eager.weights[STEPS], fast.weights[STEPS]),
    }
    apart = {name: max(_apart(one[key], other[key]) for key in one) for name, (one, other) in pairs.items()}
    return {**apart, "losses": _apart(torch.tensor(eager.losses), torch.tensor(fast.losses)), "compiled": graphs}


def _apart(one, other):
    return ((one - other).norm() / one.norm()).item()


class _Scaled(nn.Module):
    """A part of a block that depends on a number of its own, as a rate of dropout is."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.layer = rate, nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if self.rate == 0 else self.rate * self.layer(x)


class _Block(nn.Module):
    is_block = True

    def __init__(self, rate):
        super().__init__()
        self.part = _Scaled(rate)

    def forward(self, x):
        return self.part(x)


class _Network(nn.Module):
    classes = 1

    def __init__(self, rates):
        super().__init__()
        self.trunk = nn.ModuleList(map(_Block, rates))

    def forward(self, x, conditions, heads=None, attention=None):
        for block in self.trunk:
            x = block(x)
        return {"u": x}


def _versions(backend):
    """Return the versions of blocks of two kinds for two depths, on a mesh of one process."""
    from torch import distributed as dist
    from torch._dynamo.utils import counters
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from pmf_lightning.distributed.strategies import shard
    from pmf_lightning.objectives.jvp.compiled import CompiledNetwork

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh, found, apart, x = init_device_mesh("cpu", (1,)), [], 0.0, torch.linspace(-1, 1, 12).view(3, 4)
    for depth in (COUNT, 3 * COUNT):
        torch._dynamo.reset()
        torch.manual_seed(0)
        network = _Network([0, 0.5] * (depth // 2))
        before, eager = counters["stats"]["unique_graphs"], network(x, {})["u"].detach()
        shard(network, mesh, MixedPrecisionPolicy())
        fast = CompiledNetwork(network, backend)(x, {})["u"]
        fast.sum().backward()
        apart = max(apart, _apart(eager, fast))
        found.append(counters["stats"]["unique_graphs"] - before)
    dist.destroy_process_group()
    return {"first": found[0], "last": found[1], "apart": apart}


if __name__ == "__main__":
    work = {"train": _train, "versions": _versions}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
