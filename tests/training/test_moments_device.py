"""Runs with their moments in host memory (moments.device=cpu), and what info counts of them."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
from fake_device import ELSEWHERE
from kept import assert_same, state
from shrunk import RUN

from pmf_lightning import build, compose
from pmf_lightning.commands import train
from pmf_lightning.commands.info import info, scaling
from pmf_lightning.commands.train import memory_of_a_step
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.sources.shapes.source import Shapes
from pmf_lightning.optim.host_moments import HostMoments, with_moments_on
from pmf_lightning.pipeline import parts
from pmf_lightning.profiling.step_memory import StepMemory
from pmf_lightning.training.prepare import Parts

SOURCE = Shapes("shapes", 16, 3, 10, 64, 10)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_run_stores_and_resumes_the_same(optimizer, tmp_path, monkeypatch):
    short = [*RUN, "sample_grid.enabled=false", f"optimizer={optimizer}"]
    train.run(compose([*short, "steps=4", f"run_dir={tmp_path / 'beside'}"]))
    monkeypatch.setattr(parts, "with_moments_on", lambda _, make: with_moments_on(ELSEWHERE, make))
    restored, keep = [], HostMoments.keep_moments
    monkeypatch.setattr(HostMoments, "keep_moments", lambda self: (restored.append(len(self.state)), keep(self)))
    for steps in ("steps=3", "steps=4"):
        train.run(compose([*short, steps, "moments.device=cpu", f"run_dir={tmp_path / 'host'}", "ckpt=auto"]))
    assert_same(*(state(tmp_path / name) for name in ("beside", "host")))
    assert [count > 0 for count in restored] == [False, True]  # before the first pass, which needs their place


def test_they_are_counted_in_host_memory():
    sizes = {"weights": 10, "gradients": 10, "optimizer": 20, "averages": 30}
    beside = StepMemory(micro_batch=2, **sizes, activations=200, update=50, update_on_cpu=20, queues=7)
    host = replace(beside, moments_on_host=True)
    assert (host.fixed, host.peak, host.host) == (beside.fixed - 20, beside.peak - 20, 20)
    assert (host.process, beside.host) == (beside.process, 0)
    assert host.largest_micro_batch(1000) == beside.largest_micro_batch(1020)
    assert "weights, gradients and averages + " in host.line()
    assert host.line().endswith("2e-08 GB of moments in host memory")
    both = replace(host, averages_on_host=True)
    assert (both.fixed, both.host) == (20, 20 + 30 + 10)
    assert "weights and gradients + " in both.line()
    assert both.line().endswith("6e-08 GB of moments, averages and copied weights in host memory")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_info_counts_them_there(optimizer):
    cfg = ["model=pmf_tiny", "data=digits", f"optimizer={optimizer}"]
    beside, host = (info([*cfg, *more])[0].memory for more in ([], ["moments.device=cpu"]))
    assert replace(host, update=0) == replace(beside, moments_on_host=True, update=0)
    assert host.fixed == beside.fixed - beside.optimizer
    assert beside.update <= host.update <= beside.update + host.optimizer  # those of a part


@pytest.mark.slow
def test_they_are_no_part_of_an_estimate_of_gpus():
    cfg = ["model=pmf_tiny", "data=digits", "batch=64", "gpus=[8]"]
    found = [scaling([*cfg, *more])[0] for more in ([], ["moments.device=cpu"])]
    moments = info(cfg[:2])[0].memory.optimizer
    assert found[1].state == found[0].state - moments


@pytest.mark.parametrize(("accelerator", "on_device"), [("gpu", False), ("cpu", True)])
def test_micro_batch_auto_leaves_room_for_what_is_on_the_device(accelerator, on_device, monkeypatch):
    cfg = compose([*RUN, "micro_batch=auto", "moments.device=cpu"])
    parts = Mock(spec=Parts, module=build(cfg), source=SOURCE, data=ImageData(SOURCE, 0, 16, None, 0))
    cfg.trainer.accelerator = accelerator
    monkeypatch.setattr(train, "room", lambda accelerator: 10**9)
    memory = memory_of_a_step(cfg, parts)
    assert memory.gradients > 0
    assert (memory.optimizer > 0) == on_device
