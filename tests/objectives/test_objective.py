"""The objective: oracles have no loss, the guided target by hand, what a drop does, and what is never computed."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from common import CLASSES, ROWS, SHAPE, Oracle, Spy, Squares, normal, objective, relative, rows, tiny_network, uniform

from pmf_lightning import Batch
from pmf_lightning.objectives.fields import noisy_image, velocity_from_image
from pmf_lightning.objectives.guidance import adaptive_weight, guidance_scale, guided_velocity, omega_in_interval

FORMS = pytest.mark.parametrize("form", ["one_pass", "two_pass"])
PREDICTIONS = pytest.mark.parametrize("prediction", ["x", "u"])
PLACES = {name: place for place, name in enumerate(ROWS)}
NULL = CLASSES


def oracle_for(prediction, batch, z, t):
    return Oracle(z, batch.x if prediction == "x" else velocity_from_image(z, batch.x, t, 0.05))


# Oracles


@FORMS
@PREDICTIONS
@pytest.mark.parametrize("guided", [False, True])
def test_perfect_network_has_no_loss(form, prediction, guided):
    """Clean images (or velocities) from both heads: v_g = v_t and V = v_t, at every omega, to the last bits."""
    batch, draws = rows()
    draws = draws if guided else replace(draws, omega=torch.ones_like(draws.omega))
    draws = replace(draws, t=draws.t.clone().index_fill_(0, torch.tensor([5]), 0.01), r=draws.r.clone())
    draws.r[5] = 0.01  # a tied row below the clip of t
    z = noisy_image(batch.x, draws.noise, draws.t)
    oracle = oracle_for(prediction, batch, z, draws.t)
    losses = objective(prediction=prediction, jvp=form)(oracle, batch, draws, keep_fields=True)
    assert losses.total < 1e-20
    for sums in losses.per_sample.values():
        assert sums.max() < 1e-20
    wrong = Oracle(z, oracle.answers + 0.01)
    assert objective(prediction=prediction, jvp=form)(wrong, batch, draws).per_sample["loss_u"].min() > 1e-3


@FORMS
def test_perfect_network_at_drawn_times(form):
    """The same with the objective's own draws."""
    law = objective(jvp=form)
    batch = Batch(normal("x", shape=(16, *SHAPE)).clamp(-1, 1), torch.arange(16) % CLASSES)
    draws = law.draw(batch, 0, 0)
    assert draws.t[draws.t != draws.r].min() > 0.05
    z = noisy_image(batch.x, draws.noise, draws.t)
    losses = law(Oracle(z, batch.x), batch, draws)
    assert losses.total < 1e-20


# Values


def test_sums_and_total():
    batch, draws = rows()
    law = objective(weight_power=0.5, weight_eps=0.3)
    losses = law(tiny_network(), batch, draws, keep_fields=True)
    f = losses.fields
    for name, field in (("loss_u", f["V"]), ("loss_v", f["v"])):
        by_hand = torch.stack([((a - b) ** 2).sum() for a, b in zip(field, f["v_g"], strict=True)]).detach()
        torch.testing.assert_close(losses.per_sample[name], by_hand, rtol=1e-13, atol=0)
        assert not losses.per_sample[name].requires_grad
    terms = [loss / (loss + 0.3) ** 0.5 for loss in losses.per_sample.values()]
    torch.testing.assert_close(losses.total.detach(), (terms[0] + terms[1]).mean(), rtol=1e-13, atol=0)
    assert losses.total.shape == ()


@pytest.mark.parametrize(("power", "eps"), [(1.0, 0.01), (0.5, 1.0), (0.0, 1.0)])
def test_adaptive_weight_divides_but_is_not_differentiated(power, eps):
    loss = torch.tensor([0.0, 0.5, 300.0], dtype=torch.float64, requires_grad=True)
    weighted = adaptive_weight(loss, power, eps)
    weighted.sum().backward()
    weight = 1 / (loss.detach() + eps) ** power
    torch.testing.assert_close(weighted.detach(), loss.detach() * weight)
    torch.testing.assert_close(loss.grad, weight)


def test_guidance_functions_by_hand():
    t, omega = torch.tensor([0.1, 0.2, 0.5, 0.8, 0.9]), torch.full((5,), 3.0)
    inside = omega_in_interval(t, omega, torch.full((5,), 0.2), torch.full((5,), 0.8))
    assert inside.tolist() == [1, 3, 3, 3, 1]
    v_t, v_c, v_u = (normal(n, shape=(2, 1, 2, 2)) for n in ("t", "c", "u"))
    v_g = guided_velocity(v_t, v_c, v_u, torch.tensor([1.0, 4.0], dtype=torch.float64))
    assert torch.equal(v_g[0], v_t[0])
    torch.testing.assert_close(v_g[1], v_t[1] + 0.75 * v_c[1] - 0.75 * v_u[1])
    u = uniform("omega", count=9)
    torch.testing.assert_close(guidance_scale(u, 8.0, 1.0), 8**u)
    torch.testing.assert_close(guidance_scale(u, 8.0, 2.0), 1 / (1 - 7 * u / 8))


@FORMS
@PREDICTIONS
def test_fields_written_out_row_by_row(form, prediction):
    """Every row by itself, as the reference does it: all passes, no shortcut."""
    network = tiny_network()
    batch, draws = rows()
    law = objective(prediction=prediction, jvp=form)
    found = law(network, batch, draws, keep_fields=True).fields
    for name, i in PLACES.items():
        t, r, omega, t_min, t_max, drop = ROWS[name]
        clip = max(t, 0.05)
        z = (1 - t) * batch.x[i] + t * draws.noise[i]
        v_t = (z - batch.x[i]) / clip

        def ask(head, label, h, omega, t_min, t_max, z=z, clip=clip):
            given = {"omega": 1 - 1 / omega, "t_min": t_min, "t_max": t_max, "h": h}
            given = {name: torch.tensor([value], dtype=torch.float64) for name, value in given.items()}
            with torch.no_grad():
                raw = network(z[None], {**given, "label": torch.tensor([label])})[head][0]
            return (z - raw) / clip if prediction == "x" else raw

        effective = omega if t_min <= t <= t_max else 1.0
        v_u = ask("v", NULL, 0.0, 1.0, 0.0, 1.0)
        v_c = ask("v", int(batch.y[i]), 0.0, effective, 0.0, 1.0)
        v_g = v_t if drop else v_t + (1 - 1 / effective) * (v_c - v_u)
        label = NULL if drop else int(batch.y[i])
        expected = {
            "z": z,
            "v_g": v_g,
            "u": ask("u", label, t - r, omega, t_min, t_max),
            "v": ask("v", label, t - r, omega, t_min, t_max),
        }
        if t != r or not drop:
            expected["v_c"] = v_c
        for field, value in expected.items():
            assert relative(found[field][i], value) < 1e-12, (name, field)


def test_tied_row_with_an_interval_of_its_own():
    """Draws of another maker may leave a tied row an interval: v_c is then not the answer that is trained."""
    network = tiny_network()
    batch, draws = rows("tied, guided")
    low, high = torch.full_like(draws.t, 0.1), torch.full_like(draws.t, 0.9)
    narrow = objective()(network, batch, replace(draws, t_min=low, t_max=high), keep_fields=True)
    whole = objective()(network, batch, draws, keep_fields=True)
    assert relative(narrow.fields["v_c"], whole.fields["v_c"]) < 1e-13
    assert relative(narrow.fields["v_g"], whole.fields["v_g"]) < 1e-13
    assert relative(narrow.fields["v"], whole.fields["v"]) > 1e-3


# Dropped labels


@FORMS
def test_dropped_rows_take_the_null_label_and_no_guidance(form):
    batch, draws = rows()
    found = objective(jvp=form)(tiny_network(), batch, draws, keep_fields=True).fields
    v_t = velocity_from_image(found["z"], batch.x, draws.t, 0.05)
    assert torch.equal(found["v_g"][draws.drop], v_t[draws.drop])
    kept = [PLACES["tied, guided"], PLACES["moving, inside the interval"]]
    assert relative(found["v_g"][kept], v_t[kept]) > 1e-2
    for label in (0, 3):
        other = Batch(batch.x, torch.where(draws.drop, label, batch.y))
        again = objective(jvp=form)(tiny_network(), other, draws, keep_fields=True).fields
        assert torch.equal(again["v"][PLACES["tied, dropped"]], found["v"][PLACES["tied, dropped"]])
        assert torch.equal(again["u"][PLACES["moving, dropped"]], found["u"][PLACES["moving, dropped"]])


def test_batch_and_draws_stay_as_they_were():
    batch, draws = rows()
    objective()(tiny_network(), batch, draws)
    again, drawn = rows()
    assert torch.equal(batch.y, again.y)
    assert torch.equal(batch.x, again.x)
    assert all(torch.equal(getattr(draws, f.name), getattr(drawn, f.name)) for f in fields(draws) if f.name != "crops")


# Work


def labels(call):
    return call["label"].tolist()


def guidance_call(batch):
    """(labels, 1 - 1/omega) of the guidance pass over ROWS: v_c of moving rows, then v_u of guided rows that keep."""
    moving = {
        "moving, inside the interval": 3.0,
        "moving, above the interval": 1.0,
        "moving, dropped": 2.5,
        "moving, not guided": 1.0,
        "moving, at the interval's edge": 2.2,
    }
    guided = 3  # inside the interval, tied and guided, at the interval's edge
    asked = [int(batch.y[PLACES[name]]) for name in moving] + [NULL] * guided
    return asked, [1 - 1 / omega for omega in moving.values()] + [0.0] * guided


@FORMS
def test_nothing_is_computed_that_cannot_matter(form):
    batch, draws = rows()
    spy = Spy(tiny_network())
    objective(jvp=form)(spy, batch, draws)
    guidance, *training = spy.calls

    asked, scales = guidance_call(batch)
    assert labels(guidance) == asked
    torch.testing.assert_close(guidance["omega"], torch.tensor(scales, dtype=torch.float64))
    assert guidance["heads"] == ("v",)
    assert (guidance["t_min"] == 0).all()
    assert (guidance["t_max"] == 1).all()
    assert not guidance["graph"]

    moving = draws.t != draws.r
    seen = torch.where(draws.drop, NULL, batch.y)
    calls = [(call["rows"], call["heads"], labels(call)) for call in training]
    if form == "two_pass":
        assert calls == [
            (8, ("u", "v"), seen.tolist()),
            (5, ("u",), seen[moving].tolist()),
        ]
    else:
        assert calls == [
            (5, ("u", "v"), seen[moving].tolist()),
            (3, ("u", "v"), seen[~moving].tolist()),
        ]
    raw = 1 - 1 / draws.omega  # training sees the scale as drawn, whatever the interval says
    order = torch.arange(8) if form == "two_pass" else torch.cat([moving.nonzero(), (~moving).nonzero()]).flatten()
    assert torch.equal(torch.cat([call["omega"] for call in training])[:8], raw[order])


@FORMS
@pytest.mark.parametrize("names", [("tied, dropped", "tied, not guided"), ("tied, dropped",)])
def test_no_guidance_pass_where_nobody_asks(form, names):
    spy = Spy(tiny_network())
    objective(jvp=form)(spy, *rows(*names))
    assert [(call["rows"], call["heads"]) for call in spy.calls] == [(len(names), ("u", "v"))]


@FORMS
def test_tied_rows_ask_for_no_label_guidance_of_their_own(form):
    spy = Spy(tiny_network())
    objective(jvp=form)(spy, *rows("tied, guided"))
    assert [(labels(call), call["heads"]) for call in spy.calls] == [([NULL], ("v",)), ([2], ("u", "v"))]


# The contract


def test_raw_answers_are_read_as_velocities():
    network = tiny_network()
    batch, draws = rows()
    arguments = network, batch.x, draws.t, draws.r, draws.omega, draws.t_min, draws.t_max, batch.y
    with torch.no_grad():
        u_raw, v_raw = objective(prediction="u").velocities(*arguments, heads=("u", "v")).values()
        u, v = objective(prediction="x").velocities(*arguments, heads=("u", "v")).values()
        u_alone = objective(prediction="x").average_velocity(*arguments)
    t = draws.t[:, None, None, None]
    torch.testing.assert_close(u, (batch.x - u_raw) / t)
    torch.testing.assert_close(v, (batch.x - v_raw) / t)
    torch.testing.assert_close(u_alone, u, rtol=1e-13, atol=1e-13)
    assert relative(u_raw, v_raw) > 0.1


@FORMS
@PREDICTIONS
def test_every_weight_gets_a_gradient(form, prediction):
    network = tiny_network()
    objective(jvp=form, prediction=prediction)(network, *rows()).total.backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.norm() > 0, name


def test_features_without_a_weight_are_refused():
    batch, draws = rows()
    network = tiny_network()
    with pytest.raises(ValueError, match=r"weighed are \(\), encoders= gives \(lpips\)"):
        objective()(network, batch, draws, encoders={"lpips": Squares(4)})
    assert objective()(network, batch, draws, encoders={}).total > 0


def test_fields_are_kept_only_on_request():
    batch, draws = rows()
    assert objective()(tiny_network(), batch, draws).fields is None
    kept = objective()(tiny_network(), batch, draws, keep_fields=True).fields
    assert all(field.shape == batch.x.shape for field in kept.values())


def test_objective_is_frozen_and_has_no_defaults():
    with pytest.raises(FrozenInstanceError):
        objective().t_clip = 0.1
    complete = {f.name: getattr(objective(), f.name) for f in fields(objective())}
    for name in complete:
        with pytest.raises(TypeError, match=name):
            type(objective())(**{key: value for key, value in complete.items() if key != name})


def test_half_precision_answers_are_summed_in_float32():
    batch, draws = rows(dtype=torch.float32)
    network = tiny_network(torch.float32)
    exact = objective()(network, batch, draws)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective()(network, batch, draws)
    half.total.backward()
    for name, sums in half.per_sample.items():
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums, exact.per_sample[name], rtol=0.2, atol=0)
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
