"""The learning rate over a run."""

import pytest
from shrunk import RUN

from pmf_lightning import UserError, build, compose
from pmf_lightning.optim.schedules import rate_factor


def test_constant_without_shares():
    assert {rate_factor(step, 10, 0, 0) for step in range(10)} == {1.0}


def test_rise_and_fall():
    factors = [rate_factor(step, 10, 0.2, 0.4) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_module_follows_the_schedule():
    module = build(compose([*RUN, "steps=10", "schedule.decay=0.5", "optimizer.lr=0.01"]))
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(10):
        rates.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert [len(rate) for rate in rates] == [1] * 10
    assert [rate.pop() for rate in rates] == pytest.approx([0.01] * 6 + [0.008, 0.006, 0.004, 0.002])
    assert configured["lr_scheduler"]["interval"] == "step"


def test_shares_outside_are_refused():
    with pytest.raises(UserError, match=r"schedule\.decay=1\.5"):
        build(compose([*RUN, "schedule.decay=1.5"]))
