"""What leads from the original MeanFlow to iMF: the direction of du/dt, one scale of guidance, no drawn interval."""

from dataclasses import replace

import pytest
import torch
from common import CONDITIONS, Spy, blank, objective, relative, rows, tiny_network
from omegaconf import OmegaConf
from shrunk import BACKBONE

from pmf_lightning import build, compose
from pmf_lightning.objectives.fields import expand_like, noisy_image
from pmf_lightning.objectives.guidance import guidance_scale
from pmf_lightning.pipeline.checkpoints import load_checkpoint

FORMS = pytest.mark.parametrize("form", ["one_pass", "two_pass"])
TOLD_NOTHING = {
    name: {**spec, "tokens": spec["tokens"] * (name in ("label", "h"))} for name, spec in CONDITIONS.items()
}
MEANFLOW = {
    "prediction": "u",
    "v_target": "plain",
    "v_source": "boundary",
    "jvp_tangent": "target",
    "weight_power": 0.0,
}


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])


@FORMS
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gradient_is_that_of_the_original_loss(form, scale):
    """MeanFlow regresses u on sg[v~ - (t - r) du/dt], du/dt along v~ = v_t + k (u(z, t, t | c) - u(z, t, t | null))."""
    network = tiny_network(conditions=TOLD_NOTHING, heads={"u": 1})
    batch, numbers = rows()
    whole = {"t_min": torch.zeros_like(numbers.t), "t_max": torch.ones_like(numbers.t)}
    numbers = replace(numbers, omega=torch.full_like(numbers.omega, scale), **whole)
    ours = gradients(network, objective(**MEANFLOW, jvp=form)(network, batch, numbers).total)

    e, t, r = numbers.noise, numbers.t, numbers.r
    z, y = noisy_image(batch.x, e, t), torch.where(numbers.drop, network.classes, batch.y)

    def u(z, t, r, y):
        return network(z, {"label": y, "h": t - r}, heads=("u",), attention="plain")["u"]

    with torch.no_grad():
        k = expand_like((~numbers.drop) * (1 - 1 / numbers.omega), z)
        v = e - batch.x + k * (u(z, t, t, batch.y) - u(z, t, t, torch.full_like(y, network.classes)))
        still = torch.ones_like(t), torch.zeros_like(r)
        _, du_dt = torch.func.jvp(lambda z, t, r: u(z, t, r, y), (z, t, r), (v, *still))
        regressed = v - expand_like(t - r, z) * du_dt
    theirs = gradients(network, (u(z, t, r, y) - regressed).square().sum() / len(z))
    assert relative(ours, theirs) < 1e-10


def test_the_direction_matters_where_r_is_not_t():
    batch, numbers = rows()
    kept = {
        tangent: objective(jvp_tangent=tangent)(tiny_network(), batch, numbers, keep_fields=True).fields
        for tangent in ("network", "target")
    }
    differs = (kept["network"]["du_dt"] - kept["target"]["du_dt"]).flatten(1).norm(dim=1) > 1e-6
    assert torch.equal(differs, numbers.r_ne_t)
    torch.testing.assert_close(kept["network"]["v_g"], kept["target"]["v_g"])


def test_unguided_rows_of_the_target_ask_for_no_guidance():
    batch, numbers = rows("moving, not guided", "tied, not guided", "moving, dropped")
    for tangent, asked in (("network", 2), ("target", 0)):
        spy = Spy(tiny_network())
        objective(jvp_tangent=tangent)(spy, batch, numbers)
        assert sum(call["rows"] for call in spy.calls if call["heads"] == ("v",)) == asked


def test_without_an_interval_guidance_is_everywhere():
    batch = blank(64)
    drawn, whole = (objective(sample_interval=interval).draw(batch, 0, 0) for interval in (True, False))
    assert (whole.t_min == 0).all()
    assert (whole.t_max == 1).all()
    assert (drawn.t_min[32:] > 0).all()
    for name in ("t", "r", "noise", "omega", "drop"):
        assert torch.equal(getattr(drawn, name), getattr(whole, name))


def test_one_scale_for_all():
    drawn = objective(omega_min=2.5, omega_max=2.5).draw(blank(16), 0, 0)
    torch.testing.assert_close(drawn.omega, torch.full((16,), 2.5))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_law_of_the_scale_between_two_ends(beta):
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    omega = guidance_scale(u, 8.0, beta, 2.0)
    by_hand = 2 * 4**u if beta == 1 else 1 / (1 / 2 + u * (1 / 8 - 1 / 2))
    torch.testing.assert_close(omega, by_hand)
    assert torch.equal(guidance_scale(u, 8.0, beta, 1.0), guidance_scale(u, 8.0, beta))


@pytest.mark.parametrize("ends", [(0.5, 8.0), (3.0, 2.0)])
def test_scales_out_of_order_are_refused(ends):
    with pytest.raises(ValueError, match=f"omega_min={ends[0]} omega_max={ends[1]}: scales begin at 1"):
        objective(omega_min=ends[0], omega_max=ends[1])


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="jvp_tangent=data is not one of network, target"):
        objective(jvp_tangent="data")


def test_checkpoints_from_before_these_options_are_read(tmp_path):
    module = build(compose(["model=pmf_tiny", *BACKBONE]))
    config = OmegaConf.to_container(OmegaConf.create(module.config))
    for name in ("omega_min", "jvp_tangent", "sample_interval"):
        del config["objective"][name]
    stored = {"config": config, "state_dict": module.state_dict(), "ema": {"2k": module.network.state_dict()}}
    torch.save(stored, tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt").objective == module.objective
