"""The numbers of the official codes of pMF and iMF, through load_official and the API."""

from dataclasses import fields, replace

import pytest
import torch
from common import relative

from pmf_lightning import Batch, MeanFlowDraws, generate
from pmf_lightning.objectives.fields import noisy_image
from pmf_lightning.objectives.guidance import guidance_scale
from pmf_lightning.objectives.time_sampling import ORDERS, logit_normal
from pmf_lightning.utils import rng
from pmf_lightning.weights import official_tensors

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
SCALARS = ("t", "r", "omega", "t_min", "t_max")
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def batch_and_draws(golden, dtype):
    numbers = {name: golden[name].to(dtype) for name in SCALARS}
    batch = Batch(golden["x"].to(dtype), golden["y"])
    return batch, MeanFlowDraws(noise=golden["e"].to(dtype), drop=golden["drop_mask"], **numbers)


@pytest.fixture(scope="module", params=["pmf", "imf"])
def family(request):
    return request.param


@pytest.fixture(scope="module", params=["one_pass", "two_pass"])
def form(request):
    return request.param


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def run(request, form, golden, golden_module):
    """(tolerance, losses, gradients) of the training loss."""
    module = golden_module(request.param)
    objective = replace(module.objective, jvp=form)
    losses = objective(module.network, *batch_and_draws(golden, request.param), keep_fields=True)
    losses.total.backward()
    gradients = {name: weight.grad for name, weight in module.network.named_parameters()}
    gradients = official_tensors(module.network, gradients)
    return TOLERANCE[request.param], losses, gradients


@DTYPES
def test_network_outputs(dtype, golden, golden_values, golden_module):
    module = golden_module(dtype)
    z, t, h, omega, t_min, t_max = (
        golden[key].to(dtype) for key in ("gen/z", "net/t", "net/h", "net/omega", "net/t_min", "net/t_max")
    )
    with torch.no_grad():
        arguments = module.network, z, t, t - h, omega, t_min, t_max, golden["net/labels"]
        found = module.objective.velocities(*arguments, heads=("u", "v"))
    u, v = found["u"], found["v"]
    assert u.dtype == v.dtype == dtype
    assert relative(u, golden_values["net/u"]) < TOLERANCE[dtype]
    assert relative(v, golden_values["net/v"]) < TOLERANCE[dtype]


def test_fields(run, golden, golden_values):
    tolerance, losses, _ = run
    moving = golden["t"] != golden["r"]
    assert moving.tolist() == (~golden["fm_mask"]).tolist()
    matters = {"du_dt": moving, "v_c": moving | ~golden["drop_mask"]}
    everywhere = torch.ones_like(moving)
    assert set(losses.fields) == {"z", "v_g", "v_c", "u", "v", "V", "du_dt"}
    for name in ("v_g", "v_c", "u", "v", "V", "du_dt"):
        rows = matters.get(name, everywhere)
        assert relative(losses.fields[name][rows], golden_values[name][rows]) < tolerance, name
        assert losses.fields[name].isfinite().all(), name
    z = noisy_image(golden["x"].double(), golden["e"].double(), golden["t"].double())
    assert relative(losses.fields["z"], z) < tolerance


def test_sums_per_sample(run, golden, golden_values):
    tolerance, losses, _ = run
    for name in ("loss_u", "loss_v"):
        torch.testing.assert_close(
            losses.per_sample[name].double(), golden_values[f"{name}_sum"], rtol=tolerance, atol=0
        )
        torch.testing.assert_close(losses.per_sample[name].double(), golden[f"{name}_sum"].double(), rtol=1e-5, atol=0)


def test_gradients(run, family, golden_values):
    tolerance, _, gradients = run
    listed = [key for key in golden_values if key.startswith("g/")]
    assert len(listed) == {"pmf": 14, "imf": 13}[family]
    for key in listed:
        assert relative(gradients[key.removeprefix("g/")], golden_values[key]) < tolerance, key


@DTYPES
@pytest.mark.parametrize("steps", [1, 2])
def test_images(dtype, steps, golden, golden_values, golden_module):
    module = golden_module(dtype)
    omega, t_min, t_max = (round(golden[f"gen/{name}"].item(), 6) for name in ("omega", "t_min", "t_max"))
    start = golden["gen/z"].to(dtype), golden["gen/labels"], steps, omega, t_min, t_max
    images = generate(module, *start)
    assert torch.equal(images, generate(module.network, *start, objective=module.objective))
    official = golden[f"gen/image_{steps}step"]
    assert (images - official).abs().max() < 5e-6
    exact = golden_values[f"gen/image_{steps}step"]
    assert (images - exact).abs().max() < (5e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("order", [(7, 6, 5, 4, 3, 2, 1, 0), (4, 0, 5, 1, 6, 2, 7, 3)])
def test_rows_are_found_by_their_times_not_their_places(order, form, golden, golden_values, golden_module):
    module = golden_module(torch.float64)
    objective = replace(module.objective, jvp=form)
    batch, numbers = batch_and_draws(golden, torch.float64)
    order = torch.tensor(order)
    batch = Batch(batch.x[order], batch.y[order])
    numbers = MeanFlowDraws(**{f.name: getattr(numbers, f.name)[order] for f in fields(numbers) if f.name != "crops"})
    losses = objective(module.network, batch, numbers)
    for name in ("loss_u", "loss_v"):
        torch.testing.assert_close(losses.per_sample[name], golden_values[f"{name}_sum"][order], rtol=1e-9, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scalars_may_stay_on_the_cpu(form, golden, golden_values, golden_module):
    module = golden_module(torch.float64).cuda()
    objective = replace(module.objective, jvp=form)
    batch, numbers = batch_and_draws(golden, torch.float64)
    batch = Batch(batch.x.cuda(), batch.y.cuda())
    for given in (numbers, numbers.to("cuda")):
        losses = objective(module.network, batch, given)
        torch.testing.assert_close(losses.per_sample["loss_u"].cpu(), golden_values["loss_u_sum"], rtol=1e-9, atol=0)


def test_laws_turn_raw_numbers_into_the_official_draws(family, golden):
    P_mean, P_std, order = {"pmf": (0.8, 0.8, "tie_then_sort"), "imf": (-0.4, 1.0, "sort_then_tie")}[family]
    a, b = (logit_normal(golden[name], P_mean, P_std) for name in ("raw/0_normal", "raw/1_normal"))
    t, r = ORDERS[order](a, b, golden["fm_mask"])
    torch.testing.assert_close(t, golden["t"], rtol=1e-6, atol=0)
    torch.testing.assert_close(r, golden["r"], rtol=1e-6, atol=0)
    omega = guidance_scale(golden["raw/5_uniform"], 8.0, 1.0)
    torch.testing.assert_close(omega, golden["omega"], rtol=2e-6, atol=0)


def test_draw_puts_raw_numbers_where_the_official_code_does(golden, golden_module, monkeypatch):
    """The keyed streams replaced by the official ones: all that ``draw`` does with them must be the same."""
    streams = {
        "t": golden["raw/0_normal"],
        "r": golden["raw/1_normal"],
        "t_min": 2 * golden["raw/3_uniform"],
        "t_max": 2 * golden["raw/4_uniform"] - 1,
        "omega": golden["raw/5_uniform"],
        "drop": golden["raw/6_uniform"],
    }
    monkeypatch.setattr(rng, "normal", lambda seed, name, step, count: streams[name].double())
    monkeypatch.setattr(rng, "uniform", lambda seed, name, step, count: streams[name].double())
    batch, expected = batch_and_draws(golden, torch.float32)
    drawn = golden_module(torch.float32).objective.draw(batch, 0, 0)
    for name in SCALARS:
        torch.testing.assert_close(getattr(drawn, name), getattr(expected, name), rtol=2e-6, atol=0)
    assert drawn.drop.tolist() == expected.drop.tolist()
    assert (drawn.t == drawn.r).tolist() == golden["fm_mask"].tolist()
