"""The variants of pMF's tables and iMF: pre-conditioners, laws of times, the target, the boundary, perceptual terms."""

from dataclasses import replace

import pytest
import torch
from common import (
    CLASSES,
    SHAPE,
    Oracle,
    Squares,
    blank,
    empty_network,
    normal,
    objective,
    relative,
    rows,
    tiny_network,
)
from shrunk import BACKBONE

from pmf_lightning import Batch, UserError, build, compose
from pmf_lightning.objectives.crops import CropLaw, resized_crops
from pmf_lightning.objectives.fields import expand_like, noisy_image
from pmf_lightning.objectives.guidance import adaptive_weight
from pmf_lightning.objectives.preconditioners import EDM, SCM, Linear, preconditioned
from pmf_lightning.utils import rng

FORMS = pytest.mark.parametrize("form", ["one_pass", "two_pass"])
PRECONDITIONERS = pytest.mark.parametrize("preconditioner", [Linear(), EDM(0.5, 1.5), SCM(0.5)], ids=repr)
LAW = CropLaw(area=(0.08, 1.0), ratio=(0.75, 4 / 3))
TIMES = torch.tensor([1e-3, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


# Pre-conditioners


@FORMS
@PRECONDITIONERS
def test_perfect_preconditioned_network_has_no_loss(form, preconditioner):
    """The network that makes X the clean image, F = (x - c_skip z) / c_out."""
    batch, numbers = rows()
    z = noisy_image(batch.x, numbers.noise, numbers.t)
    c_skip, c_out = (expand_like(c, z) for c in preconditioner.coefficients(numbers.t))
    answers = (batch.x - c_skip * z) / c_out
    law = objective(preconditioner=preconditioner, jvp="two_pass")
    # Along the tangent the perfect F changes as the coefficients do, which a table of answers cannot: rows with r = t.
    tied = replace(numbers, r=numbers.t, t_min=torch.zeros_like(numbers.t), t_max=torch.ones_like(numbers.t))
    losses = replace(law, jvp=form)(Oracle(z, answers), batch, tied)
    assert losses.per_sample["loss_u"].max() < 1e-20
    assert losses.per_sample["loss_v"].max() < 1e-20
    assert law(Oracle(z, answers + 0.01), batch, tied).per_sample["loss_u"].min() > 1e-6


@PRECONDITIONERS
def test_both_forms_derive_the_preconditioner_too(preconditioner):
    batch, numbers = rows()
    values = []
    for form in ("one_pass", "two_pass"):
        law = objective(preconditioner=preconditioner, jvp=form)
        values.append(law(tiny_network(), batch, numbers, keep_fields=True).fields)
    assert relative(values[0]["du_dt"], values[1]["du_dt"]) < 1e-12
    plain = objective(jvp="two_pass")(tiny_network(), batch, numbers, keep_fields=True).fields
    assert relative(values[0]["du_dt"], plain["du_dt"]) > 1e-2


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_edm_is_the_best_linear_guess_and_what_it_leaves(scale):
    sigma = 0.5
    c_skip, c_out = EDM(sigma, scale).coefficients(TIMES)
    variance = (1 - TIMES) ** 2 * sigma**2 + TIMES**2 * scale**2
    torch.testing.assert_close(c_skip, (1 - TIMES) * sigma**2 / variance)  # covariance of x and z over that of z
    left = sigma**2 - c_skip**2 * variance
    torch.testing.assert_close(c_out, left.sqrt(), atol=1e-7, rtol=1e-6)


def test_edm_equals_its_published_form_on_its_own_path():
    """z' = z / (1-t) = x + sigma e with sigma = t / (1-t), where EDM's table 1 states its coefficients."""
    t, data = TIMES[:-1], 0.7
    c_skip, c_out = EDM(data, 1.0).coefficients(t)
    sigma = t / (1 - t)
    torch.testing.assert_close(c_skip * (1 - t), data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(c_out, sigma * data / (sigma**2 + data**2).sqrt())


def test_linear_and_scm_by_hand():
    z, F = normal("z", shape=(2, 1, 1, 1)), normal("F", shape=(2, 1, 1, 1))
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    linear, scm = preconditioned(Linear(), z, F, t).flatten(), preconditioned(SCM(0.5), z, F, t).flatten()
    assert linear.tolist() == pytest.approx([0.75 * z[0].item() + 0.25 * F[0].item(), F[1].item()])
    angle = torch.tensor(torch.pi / 8, dtype=torch.float64)
    first = angle.cos() * z[0].item() - 0.5 * angle.sin() * F[0].item()
    assert scm.tolist() == pytest.approx([first.item(), -0.5 * F[1].item()])


def test_a_preconditioner_needs_x_prediction():
    with pytest.raises(ValueError, match="prediction=u: a pre-conditioner makes images"):
        objective(prediction="u", preconditioner=Linear())


# Times


def drawn(*overrides, size=512):
    law = build(compose([*TINY, *overrides])).objective
    return law.draw(blank(size), 0, 0)


TINY = ["model=pmf_tiny", "data.channels=3"]


def test_full_triangle():
    numbers = drawn("objective.time_sampling=full")
    tied = numbers.t == numbers.r
    assert tied.tolist() == [True] * 256 + [False] * 256
    assert (numbers.r[256:] > 0).all()
    assert (numbers.r < numbers.t)[256:].all()


def test_only_the_line_where_r_equals_t():
    numbers = drawn("objective.time_sampling=only_tied")
    assert torch.equal(numbers.t, numbers.r)
    assert (numbers.t_min == 0).all()
    assert (numbers.t_max == 1).all()


def test_only_the_line_where_r_is_zero():
    numbers, full = drawn("objective.time_sampling=only_zero"), drawn("objective.time_sampling=full")
    assert (numbers.r == 0).all()
    assert (numbers.t > 0).all()
    assert torch.equal(numbers.t[:256], full.t[:256])  # a single draw, as of rows that are tied in the full law


def test_both_lines():
    numbers = drawn("objective.time_sampling=both_lines")
    assert torch.equal(numbers.t[:256], numbers.r[:256])
    assert (numbers.r[256:] == 0).all()


def test_uniform_share_of_long_runs():
    plain, mixed = drawn(), drawn("objective.uniform_fraction=0.1")
    replaced = (plain.t != mixed.t).double().mean().item()
    assert 0.05 < replaced < 0.15


def test_tied_rows_of_imf_take_the_larger_of_two_draws():
    law, sample = objective(P_mean=-0.4, P_std=1.0), blank(20_000)
    single = law.draw(sample, 0, 0)
    larger = replace(law, time_order="sort_then_tie").draw(sample, 0, 0)
    tied = single.t == single.r
    assert torch.equal(tied, larger.t == larger.r)
    assert (larger.t >= single.t).all()
    assert torch.equal(larger.t[~tied], single.t[~tied])
    assert torch.equal(larger.r[~tied], single.r[~tied])
    assert ((larger.t > single.t)[tied].double().mean() - 0.5).abs() < 0.02  # half of the time the other is the larger


# Target


def test_plain_target_differs_below_the_clip_alone():
    batch, numbers = rows()
    numbers = replace(numbers, t=numbers.t.clone(), r=numbers.r.clone())
    numbers.t[5] = numbers.r[5] = 0.01  # tied and not guided
    fields = {}
    for target in ("clipped", "plain"):
        law = objective(v_target=target, jvp="two_pass")
        fields[target] = law(tiny_network(), batch, numbers, keep_fields=True).fields["v_g"]
    other = torch.arange(len(batch.x)) != 5
    torch.testing.assert_close(fields["plain"][other], fields["clipped"][other], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fields["plain"][5], (numbers.noise - batch.x)[5])
    torch.testing.assert_close(fields["clipped"][5], 0.2 * (numbers.noise - batch.x)[5])


# Boundary


class TwoHeaded(torch.nn.Module):
    """A network whose v is its own u at h = 0: what v_source="boundary" should amount to."""

    def __init__(self, network):
        super().__init__()
        self.network, self.classes = network, network.classes

    def forward(self, image, conditions, heads=None, attention=None):
        at_zero = {**conditions, "h": torch.zeros_like(conditions["h"])}
        fields = {"u": self.network(image, conditions, heads=("u",), attention=attention)["u"]}
        fields["v"] = self.network(image, at_zero, heads=("u",), attention=attention)["u"]
        return {head: fields[head] for head in heads}


@FORMS
@pytest.mark.parametrize("prediction", ["x", "u"])
def test_boundary_equals_a_head_that_answers_u_at_zero(form, prediction):
    batch, numbers = rows()
    network = tiny_network(heads={"u": 1})
    law = objective(prediction=prediction, jvp=form)
    boundary = replace(law, v_source="boundary")(network, batch, numbers, keep_fields=True)
    head = replace(law, jvp="two_pass")(TwoHeaded(network), batch, numbers, keep_fields=True)
    for name in ("v_g", "v_c", "u", "du_dt", "V"):
        assert relative(boundary.fields[name], head.fields[name]) < 1e-12, name
    assert set(boundary.per_sample) == {"loss_u"}
    expected = adaptive_weight(head.per_sample["loss_u"], 1.0, 0.01).mean()
    torch.testing.assert_close(boundary.total, expected)


# Perceptual terms


def perceptual(**changes):
    weights = {"near": 0.4, "far": 0.1}
    return objective(**{"perceptual": weights, "crop": LAW, "t_thr": 0.65, "jvp": "two_pass", **changes})


def batch_with_crops():
    batch, numbers = rows()
    crops = perceptual().draw(batch, 0, 0).crops
    return batch, replace(numbers, crops=crops)


def test_perceptual_terms_by_hand():
    batch, numbers = batch_with_crops()
    network, features = tiny_network(), {"near": Squares(4), "far": Squares(6)}
    losses = perceptual()(network, batch, numbers, features, keep_fields=True)
    plain = objective(jvp="two_pass")(network, batch, numbers)
    counts = numbers.t < 0.65
    X = losses.fields["z"] - expand_like(numbers.t, batch.x) * losses.fields["u"]  # plain t, no clip
    total = plain.total
    for name, weight in (("near", 0.4), ("far", 0.1)):
        side = features[name].side
        pair = (resized_crops(images, numbers.crops, side) for images in (X, batch.x))
        distance = torch.where(counts, Squares(side)(*pair), 0)
        torch.testing.assert_close(losses.distances[name], distance)
        total = total + weight * adaptive_weight(distance, 1.0, 0.01).mean()
    torch.testing.assert_close(losses.total, total)
    assert 0 < counts.sum() < len(counts)
    assert losses.distances["near"][counts].min() > 0
    assert all(len(pairs[0]) == counts.sum() for d in features.values() for pairs in d.pairs)  # the others cost nothing


def test_perfect_images_have_no_perceptual_distance():
    batch, numbers = batch_with_crops()
    z = noisy_image(batch.x, numbers.noise, numbers.t)
    losses = perceptual()(Oracle(z, batch.x), batch, numbers, {"near": Squares(4), "far": Squares(6)})
    assert losses.total < 1e-20
    assert all(distance.max() < 1e-20 for distance in losses.distances.values())


def test_perceptual_gradient_reaches_the_network():
    batch, numbers = batch_with_crops()
    gradients = []
    for law, features in ((perceptual(), {"near": Squares(4), "far": Squares(6)}), (objective(), None)):
        network = tiny_network()
        law(network, batch, numbers, features).total.backward()
        gradients.append(network.heads["u"].out.weight.grad)
        assert network.heads["v"].out.weight.grad is not None
    assert relative(*gradients) > 1e-2


def test_no_row_below_the_threshold():
    batch, numbers = batch_with_crops()
    law, features = perceptual(t_thr=0.2), {"near": Squares(4), "far": Squares(6)}
    losses = law(tiny_network(), batch, numbers, features)
    assert all((distance == 0).all() for distance in losses.distances.values())
    assert not features["near"].pairs


def test_crops_are_keyed_by_the_global_row():
    law, batch = perceptual(), Batch(normal("x", shape=(8, *SHAPE)), torch.arange(8) % CLASSES)
    whole = law.draw(batch, 3, 7).crops
    for index in range(2):
        half = Batch(batch.x[index::2], batch.y[index::2])
        assert torch.equal(law.draw(half, 3, 7, rng.BatchRows(index, 2)).crops, whole[index::2])
    assert objective().draw(batch, 3, 7).crops is None
    assert not torch.equal(law.draw(batch, 3, 8).crops, whole)


@pytest.mark.parametrize("t_thr", [0.0, -0.1, 1.01])
def test_threshold_outside_the_unit_interval_is_refused(t_thr):
    with pytest.raises(ValueError, match=rf"t_thr={t_thr}: perceptual distances count below a time in \(0, 1\]"):
        objective(t_thr=t_thr)


@pytest.mark.parametrize("t_clip", [-0.1, 2])
def test_a_clip_that_is_no_time_is_refused(t_clip):
    with pytest.raises(ValueError, match=f"t_clip={t_clip}: it is a time, from 0 to 1"):
        objective(t_clip=t_clip)


def test_weights_need_a_law_of_crops():
    with pytest.raises(ValueError, match="needs the law of crops"):
        objective(perceptual={"near": 1.0})


def test_missing_features_are_named():
    batch, numbers = batch_with_crops()
    with pytest.raises(ValueError, match=r"weighed are \(near, far\), encoders= gives \(\); .*perceptual=none"):
        perceptual()(tiny_network(), batch, numbers)


# Diagnostics


def test_squares_of_du_dt_are_reported():
    batch, numbers = rows()
    losses = objective()(tiny_network(), batch, numbers, keep_fields=True)
    torch.testing.assert_close(losses.diagnostics["du_dt"], losses.fields["du_dt"].square().flatten(1).sum(1))
    assert (losses.diagnostics["du_dt"][numbers.t == numbers.r] == 0).all()


def test_bad_rate_of_adam_is_named():
    with pytest.raises(UserError, match="optimizer: Invalid learning rate: -1"):
        build(compose(["model=pmf_tiny", "optimizer=adam", "optimizer.lr=-1", *BACKBONE]))


# iMF


def test_imf_by_its_configuration():
    law = build(compose(["model=imf_b2", "data.resolution=4", *BACKBONE])).objective
    choices = (law.prediction, law.v_target, law.v_source, law.time_order, law.noise_scale, law.P_mean, law.P_std)
    assert choices == ("u", "plain", "head", "sort_then_tie", 1.0, -0.4, 1.0)
    assert not law.perceptual


def test_imf_recipe():
    cfg = compose(["model=imf_b2", "data=imagenet256_latents"])
    assert (cfg.steps, cfg.batch, cfg.optimizer.lr) == (800_640, 1024, 1e-4)
    assert cfg.schedule.warmup_fraction * cfg.steps == 10 * 1251
    average = 0.5 ** (cfg.batch / (1000 * cfg.ema.halflife_kimg[0]))
    assert average == pytest.approx(0.9999, abs=1e-12)
    assert cfg.sampling.ema == "7097k"
    assert (cfg.data.resolution // cfg.backbone.patch) ** 2 == 256


@pytest.mark.parametrize(("name", "value"), [("rope", "both"), ("positions", "fixed")])
def test_unknown_positions_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} is not one of"):
        empty_network(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("v_target", "raw"), ("v_source", "tail"), ("time_order", "none"), ("r_law", "one")]
)
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} is not one of"):
        objective(**{name: value})
