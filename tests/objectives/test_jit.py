"""JiT: the nine losses by hand, oracles, what is drawn, and guidance that is off at the interval's ends."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from common import CLASSES, SHAPE, Oracle, blank, normal, relative, tiny_network, uniform

from pmf_lightning import Batch, JiT, JiTDraws, generate
from pmf_lightning.objectives.fields import convert, noisy_image
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.utils.rng import BatchRows

CONDITIONS = {"label": {"kind": "class", "tokens": 2}, "t": {"kind": "scalar", "tokens": 1}}
KINDS = ("x", "eps", "v")
NINE = pytest.mark.parametrize(("prediction", "loss"), [*product(KINDS, KINDS)])
CLIP = 0.05
# Inside the clip of each divisor, at both ends, and beyond.
TIMES = torch.tensor([0.02, 0.05, 0.1, 0.4, 0.7, 0.9, 0.96, 0.99], dtype=torch.float64)
COUNT = len(TIMES)


def law(**changes) -> JiT:
    numbers = {"noise_scale": 2.0, "P_mean": 0.8, "P_std": 0.8, "label_dropout": 0.1, "t_clip": CLIP}
    return JiT(**{"prediction": "x", "loss": "v", **numbers, **changes})


def network(**changes):
    return tiny_network(conditions=CONDITIONS, heads={"u": 1}, **changes)


def rows() -> tuple[Batch, JiTDraws]:
    x = normal("x", shape=(COUNT, *SHAPE)).clamp(-1, 1)
    noise = 2 * normal("noise", shape=(COUNT, *SHAPE))
    drop = torch.arange(COUNT) % 3 == 0
    return Batch(x, torch.arange(COUNT) % CLASSES), JiTDraws(TIMES, noise, drop, torch.arange(COUNT))


def by_hand(prediction, loss, answer, x, e, t):
    """One row's squared error, written out from the paper's table 1 with t = 1 - t, term by term."""
    z = (1 - t) * x + t * e
    low, high = max(t, CLIP), max(1 - t, CLIP)
    views = {
        "x": {"x": lambda a: a, "eps": lambda a: (z - (1 - t) * a) / low, "v": lambda a: (z - a) / low},
        "eps": {"x": lambda a: (z - t * a) / high, "eps": lambda a: a, "v": lambda a: (a - z) / high},
        "v": {"x": lambda a: z - t * a, "eps": lambda a: z + (1 - t) * a, "v": lambda a: a},
    }
    truth = {"x": x, "eps": e, "v": e - x}[prediction]
    view = views[prediction][loss]
    return ((view(answer) - view(truth)) ** 2).sum()


@NINE
def test_nine_losses_written_out(prediction, loss):
    batch, draws = rows()
    net, objective = network(), law(prediction=prediction, loss=loss)
    losses = objective(net, batch, draws, keep_fields=True)
    sums = []
    for x, e, t, y, drop in zip(batch.x, draws.noise, TIMES.tolist(), batch.y, draws.drop, strict=True):
        label = torch.tensor([CLASSES if drop else int(y)])
        z = (1 - t) * x + t * e
        answer = net(z[None], {"label": label, "t": torch.tensor([t]).double()})["u"][0]
        sums.append(by_hand(prediction, loss, answer, x, e, t))
    sums = torch.stack(sums)
    assert relative(losses.per_sample[f"loss_{loss}"], sums) < 1e-9
    assert relative(losses.total, sums.mean() / 192) < 1e-9
    wanted = torch.autograd.grad(sums.mean() / 192, list(net.parameters()), allow_unused=True)
    found = torch.autograd.grad(losses.total, list(net.parameters()), allow_unused=True)
    assert all(relative(a, b) < 1e-8 for a, b in zip(found, wanted, strict=True) if b is not None and b.norm() > 0)
    assert set(losses.per_sample) == {f"loss_{loss}", "loss_v"}


def test_weight_of_the_paper():
    """x-prediction with v-loss is (x_th - x)^2 / max(t, 0.05)^2, at most 400; x-loss has no weight."""
    batch, draws = rows()
    net = network()
    v, x = (law(loss=loss)(net, batch, draws).per_sample for loss in ("v", "x"))
    weights = 1 / TIMES.clamp(min=CLIP) ** 2
    assert relative(v["loss_v"], x["loss_x"] * weights) < 1e-12
    assert weights.max().item() == pytest.approx(400)


@pytest.mark.parametrize(("given", "wanted"), [*product(KINDS, KINDS)])
def test_conversions_round_trip(given, wanted):
    t = uniform("t", count=COUNT, low=0.06, high=0.94)
    z, answer = normal("z", shape=(COUNT, *SHAPE)), normal("a", shape=(COUNT, *SHAPE))
    there = convert(answer, z, t, given, wanted, CLIP)
    assert relative(convert(there, z, t, wanted, given, CLIP), answer) < 1e-12
    x, e = normal("x", shape=(COUNT, *SHAPE)), normal("e", shape=(COUNT, *SHAPE))
    truth = {"x": x, "eps": e, "v": e - x}
    assert relative(convert(truth[given], noisy_image(x, e, t), t, given, wanted, CLIP), truth[wanted]) < 1e-12


class Knows(torch.nn.Module):
    """Knows that ``x`` is all there is: its answer is true at every point, on the straight path or off it."""

    classes = CLASSES

    def __init__(self, prediction, x):
        super().__init__()
        self.prediction, self.x = prediction, x

    def forward(self, image, conditions, heads=None, attention=None):
        t = conditions["t"][:, None, None, None]
        answers = {"x": self.x, "eps": (image - (1 - t) * self.x) / t, "v": (image - self.x) / t}
        return dict.fromkeys(heads, answers[self.prediction])


@NINE
def test_perfect_network_has_no_loss(prediction, loss):
    batch, draws = rows()
    objective = law(prediction=prediction, loss=loss)
    z = noisy_image(batch.x, draws.noise, draws.t)
    truth = {"x": batch.x, "eps": draws.noise, "v": draws.noise - batch.x}[prediction]
    assert objective(Oracle(z, truth), batch, draws).total < 1e-24
    assert objective(Oracle(z, truth + 0.01), batch, draws).total > 1e-6


def left_over(sampler):
    """What a clipped x-prediction leaves of z - x after 50 steps, followed as a number: dc/dt = c / max(t, 0.05)."""
    c = 1.0
    for k in range(50):
        t, step = 1 - k / 50, 1 / 50
        slope = c / max(t, CLIP)
        if sampler == "heun" and k < 49:
            slope = (slope + (c - step * slope) / max(t - step, CLIP)) / 2
        c -= step * slope
    return c


@pytest.mark.parametrize("sampler", ["heun", "euler"])
@pytest.mark.parametrize("prediction", KINDS)
def test_perfect_network_is_sampled_exactly_up_to_the_clip(prediction, sampler):
    """Only x-prediction divides by t: its last steps, from below 0.05, fall short by a known part of the way."""
    batch, draws = rows()
    images = generate(
        Knows(prediction, batch.x), draws.noise, batch.y, 50, sampler=sampler, objective=law(prediction=prediction)
    )
    rest = left_over(sampler) if prediction == "x" else 0.0
    assert (images - batch.x - rest * (draws.noise - batch.x)).abs().max() < 1e-12
    assert rest == 0 or 0.01 < rest < 0.02
    exact = law(prediction="x", t_clip=0.0)
    unclipped = generate(Knows("x", batch.x), draws.noise, batch.y, 50, sampler=sampler, objective=exact)
    assert relative(unclipped, batch.x) < 1e-12


def test_last_step_is_six_tenths_of_z_and_four_of_x():
    """The clip is active at t = 0.02: z - 0.02 (z - x) / 0.05."""
    x, z = normal("x", shape=(2, *SHAPE)), normal("z", shape=(2, *SHAPE))
    v = law().ode_velocity(Knows("x", x), z, 1 / 50, torch.tensor([0, 1]))
    assert relative(z + (0 - 1 / 50) * v, 0.6 * z + 0.4 * x) < 1e-15


def test_guidance_mixes_two_answers_of_the_velocity():
    net, objective, z = network(), law(prediction="eps"), normal("z", shape=(3, *SHAPE))
    labels, t = torch.tensor([0, 3, CLASSES]), 0.6
    times = torch.full((3,), t).double()
    with torch.no_grad():
        c, u = (
            (net(z, {"label": y, "t": times})["u"] - z) / (1 - t) for y in (labels, torch.full_like(labels, CLASSES))
        )
        mixed = objective.ode_velocity(net, z, t, labels, 2.5, 0.1, 0.9)
    assert relative(mixed, u + 2.5 * (c - u)) < 1e-9
    assert relative(mixed[2], c[2]) < 1e-9


@pytest.mark.parametrize(
    ("t", "interval", "guided"),
    [
        (0.9, (0.0, 0.9), False),  # the paper's t = 0.1 exactly is off
        (0.88, (0.0, 0.9), True),
        (0.92, (0.0, 0.9), False),
        (1.0, (0.0, 0.9), False),
        (1.0, (0.0, 1.0), True),  # its low = 0: the lower test is skipped
        (0.02, (0.0, 0.9), True),
        (0.2, (0.2, 0.9), False),
    ],
)
def test_guidance_is_off_at_the_ends_of_the_interval(t, interval, guided):
    net, objective, z = network(), law(), normal("z", shape=(2, *SHAPE))
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        plain, asked = (objective.ode_velocity(net, z, t, labels, omega, *interval) for omega in (1.0, 3.0))
    assert objective.nfe_per_velocity(t, 3.0, *interval) == 1 + guided
    assert torch.equal(plain, asked) != guided


def test_the_grid_point_of_the_interval_is_met_exactly():
    """50 Heun steps ask 99 velocities; t=1 once and 0.98, ..., 0.9 twice each are unguided, the others run it twice."""
    objective = law()
    assert network_evaluations(objective, 50, 3.0, 0.0, 0.9) == 2 * 99 - 11
    assert network_evaluations(objective, 50, 1.0, 0.0, 0.9) == 99
    assert network_evaluations(objective, 50, 3.0, 0.0, 1.0) == 198  # as the official code runs
    assert network_evaluations(objective, 50, 3.0, 0.0, 0.9, "euler") == 2 * 50 - 6
    assert network_evaluations(objective, 1, 1.0) == 1


def test_evaluations_are_those_that_happen():
    asked = []

    class Counting(torch.nn.Module):
        classes = CLASSES

        def forward(self, image, conditions, heads=None, attention=None):
            asked.append(len(image))
            return dict.fromkeys(heads, image)

    z, labels = normal("z", shape=(2, *SHAPE)), torch.tensor([0, 1])
    for sampler, steps in product(("heun", "euler"), (1, 4, 10)):
        asked.clear()
        options = {"steps": steps, "omega": 2.0, "t_min": 0.1, "t_max": 0.9, "sampler": sampler}
        generate(Counting(), z, labels, **options, objective=law())
        assert sum(asked) / 2 == network_evaluations(law(), **options)


# Draws


def test_draws_are_those_of_the_paper():
    objective = law()
    draws = objective.draw(blank(20_000), 0, 0)
    logit = torch.logit(draws.t.double())
    assert abs(logit.mean() - 0.8) < 0.03
    assert abs(logit.std() - 0.8) < 0.03
    assert abs(draws.drop.double().mean() - 0.1) < 0.01
    assert abs(draws.noise.std() - 2.0) < 0.03
    assert len(draws.dropout.unique()) == 20_000
    assert not torch.equal(draws.t, objective.draw(blank(20_000), 0, 1).t)


def test_draws_do_not_depend_on_how_the_batch_is_dealt():
    objective = law()
    whole = objective.draw(blank(8), 3, 5)
    for index in range(4):
        part = objective.draw(blank(2), 3, 5, BatchRows(index, 4))
        for name in ("t", "noise", "drop", "dropout"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[index::4])


def test_drop_takes_the_label_away_row_by_row():
    batch, draws = rows()
    asked = []
    net = network()
    net.register_forward_pre_hook(lambda module, args: asked.append(args[1]))
    law()(net, batch, draws)
    assert torch.equal(asked[0]["label"], torch.where(draws.drop, CLASSES, batch.y))
    assert torch.equal(asked[0]["dropout"], draws.dropout)
    changed = replace(draws, drop=torch.zeros_like(draws.drop))
    losses = [law()(net, batch, d).per_sample["loss_v"] for d in (draws, changed)]
    same = torch.isclose(*losses, rtol=1e-12)
    assert torch.equal(same, ~draws.drop)


@pytest.mark.parametrize(("field", "value"), [("prediction", "u"), ("loss", "e"), ("loss", "noise")])
def test_unknown_quantities_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} is not one of x, eps, v"):
        law(**{field: value})


def test_average_steps_are_refused():
    with pytest.raises(ValueError, match="sampler=average: this model samples by heun, euler"):
        generate(network(), normal("z", shape=(1, *SHAPE)), torch.tensor([0]), sampler="average", objective=law())
