"""du/dt against central differences, its two forms against each other, and what it may not do: carry gradients."""

import pytest
import torch
from common import CLASSES, ROWS, Spy, objective, relative, rows, tiny_network

from pmf_lightning.objectives.fields import compound_velocity, noisy_image
from pmf_lightning.objectives.jvp.derivative import velocities_and_derivative

FORMS = pytest.mark.parametrize("form", ["one_pass", "two_pass"])
MOVING = (
    "moving, inside the interval",
    "moving, above the interval",
    "moving, dropped",
    "moving, not guided",
    "moving, at the interval's edge",
)
TIED = ("tied, dropped", "tied, guided", "tied, not guided")


def labels_seen(batch, draws):
    return torch.where(draws.drop, CLASSES, batch.y)


def u_of(network, batch, draws):
    """u as a function of (z, t, r) for the conditions of a batch, as it is sampled."""
    conditions = draws.omega, draws.t_min, draws.t_max, labels_seen(batch, draws)
    return lambda z, t, r: objective().average_velocity(network, z, t, r, *conditions)


def gradients(network, losses):
    network.zero_grad()
    losses.total.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters()}


def worst(ones, others):
    assert ones.keys() == others.keys()
    return max(relative(ones[name], others[name]) for name in ones)


@FORMS
def test_derivative_equals_central_differences(form):
    network = tiny_network()
    batch, draws = rows()
    fields = objective(jvp=form)(network, batch, draws, keep_fields=True).fields
    u, step = u_of(network, batch, draws), 1e-5
    with torch.no_grad():
        ahead, behind = (
            u(fields["z"] + s * fields["v_c"], draws.t + s, draws.r) for s in (step, -step)
        )  # along (v_c, 1, 0)
        difference = (ahead - behind) / (2 * step)
    moving = draws.t != draws.r
    assert difference[moving].norm() > 1
    for row in moving.nonzero().flatten():
        assert relative(fields["du_dt"][row], difference[row]) < 1e-7


@FORMS
def test_only_moving_rows_get_a_derivative(form):
    batch, draws = rows()
    fields = objective(jvp=form)(tiny_network(), batch, draws, keep_fields=True).fields
    moving = draws.t != draws.r
    assert (fields["du_dt"][~moving] == 0).all()
    assert (fields["V"][~moving] == fields["u"][~moving]).all()
    assert (fields["V"][moving] != fields["u"][moving]).any()


@pytest.mark.parametrize("names", [(), MOVING, TIED, MOVING[:1], TIED[:1]], ids=["mixed", "moving", "tied", "1m", "1t"])
def test_both_forms_agree_in_value_and_gradient(names):
    network = tiny_network()
    batch, draws = rows(*names)
    one, two = (objective(jvp=f)(network, batch, draws, keep_fields=True) for f in ("one_pass", "two_pass"))
    for name in ("u", "v", "v_g", "v_c", "V"):
        assert relative(one.fields[name], two.fields[name]) < 1e-13, name
    torch.testing.assert_close(one.fields["du_dt"], two.fields["du_dt"], rtol=1e-11, atol=1e-11)
    assert worst(gradients(network, one), gradients(network, two)) < 1e-11


@FORMS
def test_rows_are_independent(form):
    """A row's losses are those of a batch of this row alone."""
    network, law = tiny_network(), objective(jvp=form)
    together = law(network, *rows()).per_sample
    for place, name in enumerate(ROWS):
        alone = law(network, *rows(name)).per_sample
        for loss in ("loss_u", "loss_v"):
            torch.testing.assert_close(together[loss][place], alone[loss][0], rtol=1e-11, atol=0)


@FORMS
def test_no_gradient_flows_through_the_derivative(form):
    network = tiny_network()
    batch, draws = rows()
    losses = objective(jvp=form)(network, batch, draws, keep_fields=True)
    assert not losses.fields["du_dt"].requires_grad
    assert not losses.fields["v_g"].requires_grad
    assert not losses.fields["v_c"].requires_grad
    found = gradients(network, losses)

    def written_out(stop_gradient):
        fields = losses.fields
        z = noisy_image(batch.x, draws.noise, draws.t)
        conditions = draws.omega, draws.t_min, draws.t_max, labels_seen(batch, draws)
        v = objective().velocities(network, z, draws.t, draws.r, *conditions, heads=("v",))["v"]
        u, du_dt = torch.func.jvp(
            u_of(network, batch, draws),
            (z, draws.t, draws.r),
            (fields["v_c"].detach(), torch.ones_like(draws.t), torch.zeros_like(draws.r)),
        )
        V = compound_velocity(u, du_dt.detach() if stop_gradient else du_dt, draws.t, draws.r)
        sums = [(field - fields["v_g"]).square().flatten(1).sum(1) for field in (V, v)]
        network.zero_grad()
        sum(loss / (loss.detach() + 0.01) for loss in sums).mean().backward()
        return {name: weight.grad.clone() for name, weight in network.named_parameters()}

    assert worst(found, written_out(stop_gradient=True)) < 1e-11
    assert worst(found, written_out(stop_gradient=False)) > 1e-3


@FORMS
def test_fused_and_plain_attention_agree(form):
    batch, draws = rows()
    results = []
    for kind in ("plain", "fused"):
        network = tiny_network(attention=kind)
        losses = objective(jvp=form)(network, batch, draws, keep_fields=True)
        results.append((losses.fields["V"].detach(), gradients(network, losses)))
    (plain, plain_gradients), (fused, fused_gradients) = results
    assert relative(plain, fused) < 1e-12
    assert worst(plain_gradients, fused_gradients) < 1e-10


def test_the_derivative_alone_asks_for_plain_attention():
    spy = Spy(tiny_network(attention="fused"))
    objective(jvp="two_pass")(spy, *rows())
    assert [call["attention"] for call in spy.calls] == [None, None, "plain"]
    assert [call["graph"] for call in spy.calls] == [False, True, False]


@FORMS
def test_any_function_of_z_t_r(form):
    """velocities_and_derivative knows nothing of networks: u = t^2 z + r gives 2 t z + t^2 dz/dt."""
    batch, draws = rows()
    z, t, r, moving = batch.x, draws.t, draws.r, draws.t != draws.r

    def velocities(z, t, r, rows, with_v, attention):
        u = t.square()[:, None, None, None] * z + r[:, None, None, None]
        return u, (-z if with_v else None)

    tangent = draws.noise[moving]
    u, v, du_dt = velocities_and_derivative(velocities, z, t, r, tangent, moving, form)
    assert torch.equal(u, velocities(z, t, r, None, False, None)[0])
    assert torch.equal(v, -z)
    by_hand = 2 * t[:, None, None, None] * z + t.square()[:, None, None, None] * draws.noise
    assert relative(du_dt[moving], by_hand[moving]) < 1e-14
    assert (du_dt[~moving] == 0).all()
