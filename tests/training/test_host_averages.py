"""Averages in host memory beside weights on a GPU (ema.device=cpu)."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fake_device import FakeDevice
from kept import assert_same, weights
from lightning import LightningModule, Trainer
from shrunk import RUN
from torch import nn

from pmf_lightning import compose
from pmf_lightning.commands.info import info, scaling
from pmf_lightning.optim.schedules import ema_beta
from pmf_lightning.profiling.step_memory import StepMemory
from pmf_lightning.train import train
from pmf_lightning.training.callbacks import build
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.utils import rng

ELSEWHERE = "cpu:0"  # the same memory by another name, so that the averages are not beside the weights


def begun(device, dtype=torch.float32):
    """The averages of a network that is about to train."""
    averages, trainer = EMA([0.01, 0.1], 0.5, 4, device), Mock(spec=Trainer, global_step=0)
    network = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng.generator("start", name)))
    return averages, Mock(spec=LightningModule, network=network), trainer


def started(device):
    run = averages, trained, trainer = begun(device)
    averages.on_fit_start(trainer, trained)
    averages.on_train_start(trainer, trained)
    return run


def step(averages, trained, trainer):
    """Take a step: the callback's hooks, with weights that change between them."""
    averages.on_before_optimizer_step(trainer, trained, None)
    trainer.global_step += 1
    with torch.no_grad():
        for name, weight in trained.network.named_parameters():
            weight.add_(torch.randn(weight.shape, generator=rng.generator("update", trainer.global_step, name)))
    averages.on_train_batch_end(trainer, trained)


def saved(averages, trained, trainer):
    checkpoint = {}
    averages.on_save_checkpoint(trainer, trained, checkpoint)
    return {f"{name} {key}": value for name, part in checkpoint["ema"].items() for key, value in part.items()}


@pytest.mark.parametrize("device", ["cpu", ELSEWHERE])
def test_they_are_the_averages_beside_the_weights_to_the_last_bit(device):
    runs = started(None), started(device)
    for _ in range(3):
        for run in runs:
            step(*run)
    assert_same(*(saved(*run) for run in runs))


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_averages_are_of_trained_weights_in_float32_or_wider(dtype, wide):
    run = averages, trained, trainer = begun(None, dtype)
    trained.network.bias.requires_grad_(False)
    wanted = trained.network.weight.detach().to(wide, copy=True)
    averages.on_fit_start(trainer, trained)
    averages.on_train_start(trainer, trained)
    for number in (1, 2, 3):
        step(*run)
        wanted = wanted.lerp(trained.network.weight.detach().to(wide), 1 - ema_beta(4 * number, 4, 10, 0.5))
    found = saved(*run)
    assert found.keys() == {"0.01k weight", "0.1k weight"}
    assert {value.dtype for value in found.values()} == {wide}
    torch.testing.assert_close(found["0.01k weight"], wanted)
    with averages.swapped(trained, "0.01k"):
        assert torch.equal(trained.network.weight, found["0.01k weight"].to(dtype))


def test_a_resumed_run_keeps_its_own_averages_alone():
    averages, trained, trainer = begun(None)
    weights = {name: value.detach().clone() for name, value in trained.network.named_parameters()}
    stored = {name: torch.full_like(value, 7) for name, value in weights.items()}
    averages.on_load_checkpoint(trainer, trained, {"ema": {"0.01k": stored, "9k": stored}})
    averages.on_fit_start(trainer, trained)
    wanted = {"0.01k": stored, "0.1k": weights}  # one that the checkpoint lacks starts from the weights
    assert_same(
        saved(averages, trained, trainer),
        {f"{name} {key}": value for name, part in wanted.items() for key, value in part.items()},
    )


@pytest.mark.parametrize("name", ["0.1k", "raw"])
def test_the_last_step_is_in_what_is_evaluated(name):
    found = []
    for device in (None, ELSEWHERE):
        averages, trained, trainer = started(device)
        step(averages, trained, trainer)
        raw = trained.network.weight.detach().clone()
        with averages.swapped(trained, name):
            found.append(trained.network.weight.detach().clone())
        assert torch.equal(trained.network.weight, raw)
    assert torch.equal(*found)


def test_a_step_of_a_gpu_does_not_wait_for_them(monkeypatch):
    device, (averages, trained, trainer) = FakeDevice(monkeypatch), begun("cpu")
    device.move(trained.network)
    with device:
        averages.on_fit_start(trainer, trained)  # copies the first weights, and waits
        averages.on_train_start(trainer, trained)
        device.waits.clear()
        for number in (1, 2):
            trainer.global_step = number
            averages.on_train_batch_end(trainer, trained)
            assert device.events.count("the host waits") == number - 1
            averages.on_before_optimizer_step(trainer, trained, None)
            assert device.events.count("the host waits") == number
        averages.on_before_optimizer_step(trainer, trained, None)
    assert device.events == ["the stream waits for the kernels", "the host waits"] * 2
    assert (device.saved, device.waits.total()) == (4, 0)  # two weights, twice
    assert {value.device.type for part in averages.averages.values() for value in part.values()} == {"cpu"}


@pytest.mark.slow
def test_a_run_stores_draws_and_resumes_the_same(tmp_path, monkeypatch):
    short = [*RUN, "steps=4", "sample_grid.enabled=true", "sample_grid.every_images=32"]
    straight = compose([*short, f"run_dir={tmp_path / 'beside'}"])
    train(straight)
    monkeypatch.setattr(build, "EMA", lambda *arguments: EMA(*arguments[:3], ELSEWHERE))
    for steps in ("steps=3", "steps=4"):
        train(compose([*short, steps, "ema.device=cpu", f"run_dir={tmp_path / 'host'}", "ckpt=auto"]))
    assert_same(*(weights(tmp_path / name) for name in ("beside", "host")))
    images = [sorted((tmp_path / name / "grids").glob("*.png")) for name in ("beside", "host")]
    assert [path.name for path in images[0]] == [path.name for path in images[1]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*images, strict=True))


def test_they_are_counted_in_host_memory():
    parts = {"weights": 10, "gradients": 10, "optimizer": 10, "averages": 30}
    beside = StepMemory(micro_batch=2, **parts, activations=200, update=50, update_on_cpu=20, queues=7)
    host = replace(beside, averages_on_host=True)
    assert (host.fixed, host.peak, host.host) == (beside.fixed - 30, beside.peak - 30, 30 + 10)
    assert (host.process, beside.host) == (beside.process, 0)
    assert "weights, gradients and moments + " in host.line()
    assert host.line().endswith("4e-08 GB of averages and copied weights in host memory")
    assert "gradients, moments and averages + " in beside.line()
    assert beside.line().endswith(")")


@pytest.mark.slow
def test_info_counts_them_there():
    beside, host = (info(["model=pmf_tiny", "data=digits", *more])[0].memory for more in ([], ["ema.device=cpu"]))
    assert host == replace(beside, averages_on_host=True)
    assert host.host == host.averages + host.gradients


@pytest.mark.slow
def test_they_are_no_part_of_an_estimate_of_gpus():
    cfg = ["model=pmf_tiny", "data=digits", "batch=64", "gpus=[8]"]
    found = [scaling([*cfg, *more])[0] for more in ([], ["ema.device=cpu"])]
    assert found[1].state < found[0].state
    assert found[1].update < found[0].update
