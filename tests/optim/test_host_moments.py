"""Moments in host memory beside weights on a GPU (moments.device=cpu)."""

import io
from functools import partial

import pytest
import torch
from fake_device import CUDA, ELSEWHERE, FakeDevice
from torch import nn

from pmf_lightning.optim import host_moments, muon_adam
from pmf_lightning.optim.host_moments import Adam, AdamW, with_moments_on
from pmf_lightning.optim.muon_adam import MuonAdam
from pmf_lightning.profiling.live_bytes import peak_bytes
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

SHAPES = ((6, 6), (9, 4), (6, 6), (4, 9), (5,), (1, 3, 4), (7,))
KINDS = {
    "muon": partial(MuonAdam, lr=1e-2, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
}


def normal(*names, shape):
    return torch.randn(shape, generator=rng.generator("host_moments", *names))


def begun(kind, device):
    """Weights, and an optimiser of a kind with its moments on ``device``; None: where the weights are."""
    weights = [nn.Parameter(normal("start", i, shape=shape)) for i, shape in enumerate(SHAPES)]
    make = KINDS[kind] if device is None else with_moments_on(device, KINDS[kind])
    groups = {"muon": [w for w in weights if w.ndim == 2], "adam": [w for w in weights if w.ndim != 2]}
    return weights, make([{"params": members, "kind": name} for name, members in groups.items()])


def train(weights, optimizer, first, end):
    for step in range(first, end):
        for i, weight in enumerate(weights):
            weight.grad = normal("gradient", step, i, shape=weight.shape)
        weights[step].grad = None  # so that step counts differ
        optimizer.step()


def assert_same_run(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert torch.equal(a, b)
        states = one[1].state[a], other[1].state[b]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(states[1][name])) for name, x in states[0].items())


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(host_moments, "PART_ELEMENTS", 45)
    monkeypatch.setattr(muon_adam, "CPU_ELEMENTS", 45)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("device", ["cpu", ELSEWHERE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_updates_are_those_of_moments_beside_the_weights_to_the_last_bit(kind, device):
    beside, away = begun(kind, None), begun(kind, device)
    for run in (beside, away):
        train(*run, 0, 4)
    assert_same_run(beside, away)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("devices", [(ELSEWHERE, ELSEWHERE), (ELSEWHERE, None), (None, ELSEWHERE)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_run_goes_on_to_the_last_bit_with_the_option_or_without(kind, devices):
    straight = begun(kind, None)
    train(*straight, 0, 5)
    weights, optimizer = begun(kind, devices[0])
    train(weights, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save(([weight.data for weight in weights], optimizer.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    resumed, restored = begun(kind, devices[1])
    for weight, value in zip(resumed, values, strict=True):
        weight.data.copy_(value)
    restored.load_state_dict(state)
    train(resumed, restored, 3, 5)
    assert_same_run(straight, (resumed, restored))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_each_moment_once_in_parts_and_into_the_same_memory(kind, monkeypatch):
    weights, optimizer = begun(kind, ELSEWHERE)
    train(weights, optimizer, 0, 2)
    kept = addresses(optimizer)
    parts, taken, copied_to, beside = [], [], host_moments._copied_to, host_moments.HostMoments.beside_weights

    def noted_part(self, parameters):
        parts.append(sum(p.numel() for p in parameters))
        return beside(self, parameters)

    def noted_copy(parameter, moment):
        taken.append(moment.data_ptr())
        return copied_to(parameter, moment)

    monkeypatch.setattr(host_moments.HostMoments, "beside_weights", noted_part)
    monkeypatch.setattr(host_moments, "_copied_to", noted_copy)
    train(weights, optimizer, 2, 3)
    assert sum(parts) == sum(weight.numel() for weight in weights) - weights[2].numel()  # which has no gradient
    assert max(parts) <= 45
    assert len(taken) == len(set(taken)) == len(kept) - (1 if kind == "muon" else 2)
    assert set(taken) < kept == addresses(optimizer)


def addresses(optimizer):
    return {value.data_ptr() for value in moments_of(optimizer)}


def on_a_gpu(kind, device):
    """An optimiser of weights on a pretended GPU."""
    _, optimizer = begun(kind, "cpu")
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(device.tensor(weight)) for weight in group["params"]]
        for weight in group["params"]:
            weight.grad = device.tensor(weight)
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_gpu_waits_for_no_copy(kind, monkeypatch):
    device, waited = FakeDevice(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    optimizer = on_a_gpu(kind, device)
    with device:
        optimizer.step()
        assert {moment.device.type for moment in moments_of(optimizer)} == {"cpu"}
        device.copies = device.saved = 0
        optimizer.step()
    count = len(moments_of(optimizer))
    assert (device.copies, device.saved, device.waits.total()) == (count, count, 0)
    assert waited == []
    with device:
        optimizer.state_dict()  # the host will read it
    assert waited == [CUDA]


def test_restored_moments_leave_the_gpu(monkeypatch):
    device = FakeDevice(monkeypatch)
    optimizer = on_a_gpu("muon", device)
    with device:
        for weight in optimizer.param_groups[0]["params"]:
            optimizer.state[weight] = {"step": 3, "momentum": device.tensor(weight)}
        for _ in range(2):
            optimizer.keep_moments()
            assert {moment.device.type for moment in moments_of(optimizer)} == {"cpu"}
            assert (device.saved, device.waits.total()) == (4, 0)


def moments_of(optimizer):
    return [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]


@pytest.mark.parametrize(("kind", "copies"), [("muon", 0), ("adam", 2)])  # Muon's are gone before Newton-Schulz
def test_the_meta_device_counts_the_copies_without_memory(kind, copies):
    peaks = []
    for device in (None, "cpu"):
        _, optimizer = begun(kind, device)
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(weight.to("meta")) for weight in group["params"] if weight.ndim == 2]
            for weight in group["params"]:
                weight.grad = torch.empty_like(weight)
        optimizer.param_groups = optimizer.param_groups[:1]
        optimizer.step()
        peaks.append(peak_bytes(optimizer.step))
        assert {value.device.type for value in moments_of(optimizer)} == {"meta"}
    assert peaks[1] - peaks[0] == copies * sum(4 * weight.numel() for weight in optimizer.param_groups[0]["params"])


def test_the_loss_of_a_closure_comes_back_and_its_gradients_count():
    weight = nn.Parameter(torch.ones(2))
    optimizer = with_moments_on("cpu", KINDS["adam"])([{"params": [weight]}])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert not torch.equal(weight.detach(), torch.ones(2))


def test_only_optimisers_that_take_the_weights_in_parts_are_taken():
    assert with_moments_on("cpu", KINDS["adam"]).func is Adam
    assert with_moments_on("cpu", KINDS["adamw"]).func is AdamW
    for other in (partial(torch.optim.SGD, lr=1.0), torch.optim.Adam, io.BytesIO):
        with pytest.raises(UserError, match=r"^moments\.device=cpu: .*optimizer=muon, adam or adamw"):
            with_moments_on("cpu", other)
