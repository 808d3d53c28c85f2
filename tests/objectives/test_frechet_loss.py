"""FD-loss's Frechet distance and populations: official numbers, closed-form gradients, properties, bad input."""

import pytest
import torch
from common import normal, relative
from conftest import _load

from pmf_lightning import FeatureEMA, FeatureQueue, FrechetReference, frechet_distance, frechet_loss
from pmf_lightning.objectives.discrepancies.balance import weighted_sum
from pmf_lightning.objectives.discrepancies.populations import batch_statistics

CASES = ("a", "b", "wrap", "deficient", "batch1")
BETA = 0.9


@pytest.fixture(scope="module")
def official():
    return _load("fd_loss.npz")


@pytest.fixture(scope="module")
def official_float32():
    return _load("fd_loss_f32.npz")


def population_of(mode, features):
    return FeatureEMA(features, BETA) if mode == "ema" else FeatureQueue(features)


def steps_of(official, case, mode, dtype=torch.float64):
    """Yield (new features, population before, population after, loss, info) of every step."""
    reference = FrechetReference(official[f"{case}/mu_ref"], official[f"{case}/sigma_ref"])
    population = population_of(mode, official[f"{case}/queue0"].to(dtype))
    for rows in official[f"{case}/new"].to(dtype):
        new = rows.clone().requires_grad_()
        loss, info = frechet_loss(new, population, reference, eps=official["eps"].item())
        loss.backward()
        before, population = population, population.updated(new)
        yield new, before, population, loss, info


# Official numbers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["snapshot_sym", "online", "ema"])
def test_official_numbers(case, mode, official):
    tolerance = 1e-6 if case == "deficient" else 1e-9
    for step, (new, before, after, loss, info) in enumerate(steps_of(official, case, mode)):
        wanted = {key: official[f"{case}/{mode}/{key}"][step] for key in ("mu", "sigma", "fd", "loss", "grad")}
        mu, sigma = before.statistics(new)
        assert relative(mu, wanted["mu"]) < 1e-13
        assert relative(sigma, wanted["sigma"]) < 1e-13
        assert relative(info["fd"], wanted["fd"]) < tolerance
        assert relative(loss, wanted["loss"]) < tolerance
        assert relative(new.grad, wanted["grad"]) < tolerance
        if mode == "ema":
            assert relative(after.state_dict()["mean"], official[f"{case}/ema/mu_ema"][step]) < 1e-13
            assert relative(after.state_dict()["second"], official[f"{case}/ema/m2_ema"][step]) < 1e-13
        if mode == "online":
            assert relative(after.state_dict()["total"], official[f"{case}/online/feat_sum_old"][step]) < 1e-13
            assert relative(after.state_dict()["products"], official[f"{case}/online/feat_outer_old"][step]) < 1e-13
        if mode == "snapshot_sym":
            oldest = official[f"{case}/snapshot/ptr"][step].item()
            assert torch.equal(after.features, official[f"{case}/snapshot/queue"][step].roll(-oldest, 0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["online", "ema"])
def test_official_float32_numbers(case, mode, official, official_float32):
    """The official float32 modes with float64 sums; its gradient of a rank-deficient covariance is less exact."""
    for step, (new, _, _, loss, info) in enumerate(steps_of(official, case, mode, torch.float32)):
        wanted = {key: official_float32[f"{case}/{mode}/{key}"][step] for key in ("fd", "loss", "grad")}
        assert loss.dtype == new.grad.dtype == torch.float32
        assert relative(info["fd"], wanted["fd"]) < 1e-5
        assert relative(loss, wanted["loss"]) < 1e-5
        assert relative(new.grad, wanted["grad"]) < 1e-5


def test_official_numbers_of_two_encoders(official):
    weights = dict(zip("ab", official["two/weights"], strict=True))
    encoders = {"a": lambda image: image, "b": lambda image: (image @ official["two/w"]).tanh()}
    references = {
        name: FrechetReference(official[f"two/mu_ref{i}"], official[f"two/sigma_ref{i}"]) for i, name in enumerate("ab")
    }
    populations = {name: FeatureEMA(encode(official["two/queue0"]), BETA) for name, encode in encoders.items()}
    for step, image in enumerate(official["two/image"]):
        image = image.clone().requires_grad_()
        features = {name: encode(image) for name, encode in encoders.items()}
        found = {name: frechet_loss(features[name], populations[name], references[name]) for name in "ab"}
        total = weighted_sum({name: loss for name, (loss, _) in found.items()}, weights)
        total.backward()
        assert relative(total, official["two/loss"][step]) < 1e-9
        assert relative(image.grad, official["two/grad_image"][step]) < 1e-9
        for i, name in enumerate("ab"):
            assert relative(found[name][1]["fd"], official[f"two/fd{i}"][step]) < 1e-9
            populations[name] = populations[name].updated(features[name])


# Closed forms and properties


def reference_of(width, rows=60):
    return FrechetReference(*batch_statistics(1.3 * normal("real", shape=(rows, width)) + 0.2))


def test_the_gradient_has_its_closed_form():
    """G = I - R (R Sigma R)^(-1/2) R and 2 (mu - m); per row 2/N (mu - m) + 2/(N-1) G (x - mu), EMA (1-b)/n of both."""
    reference, old, rows = reference_of(5), normal("old", shape=(30, 5)), normal("new", shape=(7, 5))
    for population, mean_share, share in (
        (FeatureQueue(old), 2 / 30, 2 / 29),
        (FeatureEMA(old, BETA), 0.2 / 7, 0.2 / 7),
    ):
        new = rows.clone().requires_grad_()
        frechet_distance(*population.statistics(new), reference).backward()
        mu, sigma = population.statistics(rows)
        values, vectors = torch.linalg.eigh(reference.root @ sigma @ reference.root)
        slope = torch.eye(5) - reference.root @ (vectors / values.sqrt()) @ vectors.mT @ reference.root
        wanted = mean_share * (mu - reference.mu) + share * (rows - mu) @ slope
        assert relative(new.grad, wanted) < 1e-11


def test_gaussians_in_one_dimension_and_real_against_real():
    reference = FrechetReference(torch.tensor([1.0]), torch.tensor([[4.0]]))
    apart = frechet_distance(torch.tensor([3.0]), torch.tensor([[9.0]]), reference)
    assert apart.dtype == torch.float32
    assert apart.item() == pytest.approx((3 - 1) ** 2 + (3 - 2) ** 2)
    real = normal("real", shape=(50, 6))
    mu, sigma = (moment.requires_grad_() for moment in batch_statistics(real))
    same = frechet_distance(mu, sigma, FrechetReference(mu, sigma))
    same.backward()
    assert abs(same.item()) < 1e-12
    assert mu.grad.norm() < 1e-12
    assert sigma.grad.norm() < 1e-10


def test_rotations_and_shifts_of_all_features_change_nothing():
    rotation = torch.linalg.qr(normal("rotation", shape=(6, 6))).Q
    old, new, real = (normal(name, shape=(rows, 6)) for name, rows in (("old", 30), ("new", 8), ("real", 50)))
    found = []
    for moved in (lambda x: x, lambda x: x @ rotation + 3):
        reference = FrechetReference(*batch_statistics(moved(real)))
        found.append(frechet_loss(moved(new), FeatureQueue(moved(old)), reference)[1]["fd"])
    assert relative(*found) < 1e-11


@pytest.mark.parametrize("mode", ["queue", "ema"])
def test_the_statistic_of_a_step_is_that_of_the_updated_population(mode):
    """Also after many steps, whose batches do not fit the blocks of the queue, and after a state was restored."""
    rows = normal("rows", shape=(90, 4)) + 5
    population, start = population_of(mode, rows[:40]), 40
    for count in (7, 1, 13, 29):
        new = rows[start : start + count].clone().requires_grad_()
        mu, sigma = population.statistics(new)
        assert mu.requires_grad
        assert sigma.requires_grad
        state = population.state_dict()
        restored = FeatureQueue.from_state(state) if mode == "queue" else FeatureEMA.from_state(state, BETA)
        assert all(map(torch.equal, restored.statistics(new), (mu, sigma)))
        before = {name: value.clone() for name, value in population.state_dict().items()}
        after = population.updated(new)
        assert all(torch.equal(value, before[name]) for name, value in population.state_dict().items())
        population, start = after, start + count
        assert not any(value.requires_grad for value in population.state_dict().values())
    if mode == "queue":
        assert torch.equal(population.features, rows[50:])
        assert all(map(torch.allclose, (mu, sigma), batch_statistics(rows[50:])))


def test_a_queue_of_the_batch_alone_is_the_batch():
    new, reference = normal("new", shape=(12, 5)).requires_grad_(), reference_of(5)
    queue = FeatureQueue(normal("old", shape=(12, 5)))
    (alone,) = torch.autograd.grad(frechet_loss(new, None, reference)[0], new)
    (replaced,) = torch.autograd.grad(frechet_loss(new, queue, reference)[0], new)
    assert relative(replaced, alone) < 1e-12


def test_gradients_are_finite_at_any_rank():
    reference = reference_of(6)
    constant, dead = torch.ones(8, 6), torch.cat((normal("live", shape=(8, 4)), torch.zeros(8, 2)), 1)
    two_rows = torch.cat((torch.zeros(1, 6), torch.ones(1, 6)))
    for rows in (constant, dead, two_rows, constant[:1]):
        for population in (FeatureQueue(constant), FeatureQueue(dead), FeatureEMA(constant, BETA)):
            new = rows.double().clone().requires_grad_()
            loss, info = frechet_loss(new, population, reference)
            loss.backward()
            assert info["fd"].isfinite()
            assert new.grad.isfinite().all()
    singular = FrechetReference(torch.zeros(6), torch.zeros(6, 6))
    new = dead.clone().requires_grad_()
    frechet_loss(new, None, singular)[0].backward()
    assert new.grad.isfinite().all()


def test_features_that_are_not_finite_give_a_nan_loss():
    rows = normal("new", shape=(8, 5))
    rows[0, 0] = torch.nan
    loss, _ = frechet_loss(rows.requires_grad_(), FeatureEMA(normal("old", shape=(20, 5)), BETA), reference_of(5))
    assert loss.isnan()


def test_half_precision_features_are_computed_in_float64():
    rows, old, reference = normal("new", shape=(8, 5)), normal("old", shape=(20, 5)), reference_of(5)
    rows, old = rows.bfloat16(), old.bfloat16()
    loss, info = frechet_loss(rows, FeatureQueue(old), reference)
    assert loss.dtype == torch.float32
    exact = frechet_loss(rows.double(), FeatureQueue(old.double()), reference)[1]["fd"]
    assert relative(info["fd"], exact) < 1e-12


# Bad input


def test_bad_input_is_one_line():
    reference, five = reference_of(5), normal("five", shape=(4, 5))
    wrong = {
        "population of 4 rows, batch of 6": lambda: FeatureQueue(five).statistics(normal("six", shape=(6, 5))),
        "4 rows, batch of 5: the pop": lambda: FeatureQueue(five).updated(normal("s", shape=(5, 5))),
        "batch of 1": lambda: frechet_loss(five[:1], None, reference),
        "at least 2": lambda: FeatureQueue(five[:1]),
        "4 features, the reference has 5": lambda: frechet_loss(five[:, :4], None, reference),
        "3 features, the reference has 5": lambda: FeatureEMA(five, 0.9).updated(five[:, :3]),
        "beta=1.0": lambda: FeatureEMA(five, 1.0),
        "eps=0": lambda: frechet_loss(five, None, reference, eps=0),
        "floating-point rows": lambda: FeatureQueue(five[None]),
        r"give \[D\] and \[D, D\]": lambda: FrechetReference(torch.zeros(5), torch.eye(4)),
        "not symmetric": lambda: FrechetReference(torch.zeros(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])),
        "not finite": lambda: FrechetReference(torch.zeros(2), torch.eye(2) * torch.nan),
        "one encoder": lambda: frechet_distance(torch.zeros(4), torch.eye(4), reference),
        "give one for each": lambda: weighted_sum({"a": torch.ones(())}, {"b": 1}),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
