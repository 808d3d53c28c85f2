"""Shards of moments in host memory beside sharded weights (moments.device=cpu trainer=fsdp), on two processes."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fake_device import ELSEWHERE
from ranks import together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training import fit

from pmf_lightning import MuonAdam
from pmf_lightning.distributed.dtensor import full_tensor, spread_like
from pmf_lightning.distributed.strategies import OLDEST_FSDP, FullySharded
from pmf_lightning.optim.host_moments import with_moments_on
from pmf_lightning.pipeline import parts
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.utils import rng

OLD = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST_FSDP
NEEDS_FSDP = pytest.mark.skipif(OLD, reason="FSDP2 takes forward-mode derivatives from torch 2.13")
SHAPES = [(5, 3), (3, 5), (1, 4)]  # rows that two ranks cannot share evenly, or at all
KINDS = {"muon": partial(MuonAdam, lr=0.1), "adam": partial(torch.optim.Adam, lr=0.1)}


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        drawn = [torch.randn(shape, generator=rng.generator("weight", i)) for i, shape in enumerate(SHAPES)]
        self.weights = nn.ParameterList(map(nn.Parameter, drawn))
        self.vector = nn.Parameter(torch.linspace(-1, 1, 3))


def begun(kind, device):
    """A network that is sharded over all processes, and its optimiser."""
    network = Weights()
    fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    groups = [{"params": list(network.weights), "kind": "muon"}, {"params": [network.vector], "kind": "adam"}]
    make = KINDS[kind] if device is None else with_moments_on(device, KINDS[kind])
    return network, make(groups)


def train(network, optimizer, first, end):
    for step in range(first, end):
        for i, weight in enumerate(network.parameters()):
            weight.grad = spread_like(torch.randn(weight.shape, generator=rng.generator("gradient", step, i)), weight)
        optimizer.step()


def stored_and_gone_on(kind, first, then):
    """Two steps, a stored state, one step of it in a new optimiser; return the weights, the state, what it holds."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    strategy, (network, optimizer) = FullySharded(None), begun(kind, first)
    train(network, optimizer, 0, 2)
    state = strategy.optimizer_state(optimizer)
    held = {type(value) for kept in optimizer.state.values() for name, value in kept.items() if name != "step"}
    strategy.optimizers = [(with_moments_on(then, KINDS[kind]) if then else KINDS[kind])(optimizer.param_groups)]
    strategy.load_optimizer_state_dict({"optimizer_states": [state]})
    train(network, strategy.optimizers[0], 2, 3)
    return [full_tensor(weight.detach()) for weight in network.parameters()], state, held


@NEEDS_FSDP
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_beside_the_weights_and_stored_whole(kind):
    (weights, state, held), _ = together(2, stored_and_gone_on, kind, None, None)
    assert held == {DTensor}
    shapes = [*SHAPES, (3,)]
    for devices in ((ELSEWHERE, ELSEWHERE), (ELSEWHERE, None), (None, ELSEWHERE)):
        for found in together(2, stored_and_gone_on, kind, *devices):
            assert found[2] == ({torch.Tensor} if devices[0] else {DTensor})
            assert all(torch.equal(a, b) for a, b in zip(weights, found[0], strict=True))
            for number, kept in found[1]["state"].items():
                for name, value in kept.items():
                    assert name == "step" or tuple(value.shape) == shapes[number]
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(state["state"][number][name]))


def in_turns(folder, device):
    """On two ranks: four steps with shards, stored after two; then the last two again, with moments beside them."""
    parts.with_moments_on = lambda _, make: with_moments_on(device, make)
    two = Path(folder) / f"{device}.ckpt"
    short = ["trainer=fsdp", "steps=4"]
    run = fit("pmf_tiny", f"{folder}/{device}", *short, "moments.device=cpu", at=(4,), keep={2: two}, finish=True)
    dist.barrier()
    return run, fit("pmf_tiny", f"{folder}/{device}-on", *short, f"ckpt={two}", at=(4,))


@NEEDS_FSDP
@pytest.mark.slow
def test_a_run_stores_and_resumes_the_same(tmp_path):
    beside, away = (together(2, in_turns, str(tmp_path), device)[0] for device in ("cpu", ELSEWHERE))
    for run in (*away, beside[1]):
        assert not [n for n, value in beside[0].weights[4].items() if not torch.equal(value, run.weights[4][n])]
    stored = [
        read_checkpoint(tmp_path / f"{device}.ckpt")["optimizer_states"][0]["state"] for device in ("cpu", ELSEWHERE)
    ]
    for number, kept in stored[0].items():
        assert kept["step"] == stored[1][number]["step"] == 2
        assert torch.equal(kept["momentum"], stored[1][number]["momentum"])
