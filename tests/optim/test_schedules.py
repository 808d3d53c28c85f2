"""The learning rate over a run."""

import math

import pytest
from shrunk import RUN

from pmf_lightning import UserError, build, compose
from pmf_lightning.optim.schedules import rate_factor


def test_constant_without_shares():
    assert {rate_factor(step, 10, 0, 0) for step in range(10)} == {1.0}


def test_rise_and_fall():
    factors = [rate_factor(step, 10, 0.2, 0.4) for step in range(10)]
    assert factors == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_half_a_cosine():
    factors = [rate_factor(step, 10, 0, 1, decay="cosine") for step in range(10)]
    assert factors == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 10) for step in range(10)])
    late = [rate_factor(step, 10, 0.2, 0.4, decay="cosine") for step in range(10)]
    assert late == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5])


@pytest.mark.parametrize(
    ("model", "data", "steps", "rate", "start"),
    [  # of the official configs: steps of warm-up, the rate after them, the rate of the first step
        ("imf_b2", "imagenet256_latents", 10 * 1251, 1e-4, 0.0),
        ("jit_b16", "imagenet256", 5 * 1251, 2e-4, 0.0),
        ("drifting_b16", "imagenet256", 10_000, 2e-4, 1e-6),
        ("drifting_l2", "imagenet256_latents_scaled", 10_000, 4e-4, 1e-6),
        ("mae_r640", "imagenet256", 4000, 4e-3, 1e-6),
    ],
)
def test_the_warm_up_is_that_of_the_official_code(model, data, steps, rate, start):
    """Linear in the number of steps done: the first step has the rate ``start``, step number ``steps`` all of it."""
    module = build(compose([f"model={model}", f"data={data}"]), empty=True)
    factor = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    rates = {step: rate * factor(step) for step in (0, 1, steps // 4, steps - 1, steps, steps + 1)}
    wanted = {step: start + (rate - start) * min(1, step / steps) for step in rates}
    assert rates == pytest.approx(wanted, rel=1e-6, abs=1e-15)


def test_pmf_has_no_warm_up():
    module = build(compose(["model=pmf_b16", "data=imagenet256"]), empty=True)
    factor = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert {factor(step) for step in (0, 1, 1000, 400_000)} == {1.0}


def test_a_start_above_the_rate_is_refused():
    for start in (-1e-6, 0.5):
        with pytest.raises(UserError, match=rf"schedule\.start={start}: .*optimizer\.lr=0\.01"):
            build(compose([*RUN, "optimizer.lr=0.01", f"schedule.start={start}"]))


def test_the_module_follows_the_schedule():
    module = build(compose([*RUN, "steps=10", "schedule.decay_fraction=0.5", "optimizer.lr=0.01"]))
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
    with pytest.raises(UserError, match=r"schedule\.decay_fraction=1\.5"):
        build(compose([*RUN, "schedule.decay_fraction=1.5"]))
