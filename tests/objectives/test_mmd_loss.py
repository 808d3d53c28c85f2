"""RDM's squared MMD, Nystrom reference, controller and gradient caching, and the distances of its ablation."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from common import normal, relative
from conftest import _load
from matching import GATED

from pmf_lightning import MMDReference, drift_loss, frechet_distance, mmd_loss, sliced_wasserstein
from pmf_lightning.objectives.discrepancies.balance import weighted_sum
from pmf_lightning.objectives.discrepancies.controller import ControllerState, GatedController
from pmf_lightning.objectives.discrepancies.fourier import FourierReference, fourier_loss
from pmf_lightning.objectives.discrepancies.frechet import FrechetReference
from pmf_lightning.objectives.discrepancies.gradient_cache import features_in_parts
from pmf_lightning.objectives.discrepancies.joint import JointLaw
from pmf_lightning.objectives.discrepancies.kernels import (
    gram,
    kernel_sums,
    median_bandwidth,
    random_rows,
    squared_distances,
)
from pmf_lightning.objectives.discrepancies.nystrom import kmeans, nystrom_weights, self_similarity
from pmf_lightning.objectives.discrepancies.populations import FeatureQueue, batch_statistics
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sliced_loss, sliced_power

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@pytest.fixture(scope="module")
def official():
    return _load("rdm.npz")


@pytest.fixture(scope="module")
def official_float32():
    return _load("rdm_f32.npz")


def close(dtype):
    return 1e-5 if dtype == torch.float32 else 1e-12


def reference_in(official, name, landmarks="Z"):
    numbers = (official[f"{name}/{key}"] for key in (landmarks, "alpha", "sigma", "k_rr"))
    return MMDReference(*numbers)


def gradient_of(raw, x):
    return torch.autograd.grad(raw, x)[0]


def raw_gradient(loss, value, x, eps=1e-7):
    """The gradient of a raw distance, from that of its normalised loss."""
    return gradient_of(loss, x) * (value.abs() + eps)


# Official numbers of the loss and its reference


def test_official_kernels_and_bandwidths(official):
    a, b, sigma = (official[f"kernels/{name}"] for name in ("a", "b", "sigma"))
    assert relative(squared_distances(a, b), official["kernels/d2"]) < 1e-14
    assert relative(gram(a, b, sigma), official["kernels/gram"]) < 1e-14
    assert relative(self_similarity(a, sigma.item()), official["kernels/self_mean"]) < 1e-14
    assert relative(kernel_sums(a, b, sigma, batch_size=3).sum() / 20, official["kernels/cross_mean"]) < 1e-14
    features, other = official["median/feats"], official["median/other"]
    assert median_bandwidth(features) == pytest.approx(official["median/sigma"].item(), rel=1e-12)
    assert median_bandwidth(features, scale=0.25) == pytest.approx(official["median/sigma_cold"].item(), rel=1e-12)
    assert median_bandwidth(features, other) == pytest.approx(official["median/sigma_two"].item(), rel=1e-12)


def test_official_reference(official):
    pool, marks = official["nystrom/pool"], official["nystrom/Z"]
    fitted = MMDReference.fit(pool, marks)
    assert fitted.bandwidth == pytest.approx(official["nystrom/sigma"].item(), rel=1e-12)
    assert relative(fitted.alpha, official["nystrom/alpha"]) < 1e-9
    assert fitted.k_rr == pytest.approx(official["nystrom/k_rr"].item(), rel=1e-13)
    assert relative(self_similarity(pool[:100], fitted.bandwidth), official["nystrom/k_rr_first_half"]) < 1e-13


@DTYPES
def test_official_loss(dtype, official, official_float32):
    g = official["loss/g"].to(dtype).requires_grad_()
    reference = reference_in(official, "nystrom")
    for batch_size in (5, 8192):
        loss, info = mmd_loss(g, reference, batch_size=batch_size)
        assert loss.dtype == dtype
        assert relative(info["mmd2"], official[f"loss/raw_chunk{batch_size}"]) < close(dtype)
        assert relative(info["k_gg"], official["loss/k_gg"]) < close(dtype)
        assert relative(info["k_gr"], official["loss/k_gr_feature_map"]) < close(dtype)
        assert relative(loss, official["loss/normalised"]) < close(dtype)
        (gradient,) = torch.autograd.grad(loss, g)
        assert relative(gradient, official["loss/grad_normalised"]) < close(dtype)
    assert relative(raw_gradient(mmd_loss(g, reference)[0], info["mmd2"], g), official["loss/grad_chunk5"]) < close(
        dtype
    )
    assert relative(info["mmd2"], official_float32["loss/raw_chunk8192"]) < 1e-5


def test_official_sum_over_encoders(official):
    g = official["sum/g"].clone().requires_grad_()
    found = {name: mmd_loss(g @ official[f"sum/{name}/A"], reference_in(official, f"sum/{name}")) for name in "xyz"}
    total = weighted_sum(
        {name: loss for name, (loss, _) in found.items()}, dict(zip("xyz", official["sum/weights"], strict=True))
    )
    total.backward()
    for name, (_, info) in found.items():
        assert relative(info["mmd2"], official[f"sum/{name}/raw"]) < 1e-12
    assert relative(total, official["sum/total"]) < 1e-12
    assert relative(g.grad, official["sum/grad"]) < 1e-12


@DTYPES
def test_official_gradient_caching(dtype, official, official_float32):
    weights = {name: official[f"cache/{name}"].to(dtype).requires_grad_() for name in ("W1", "b1", "W2", "b2")}
    chunks, matrix = official["cache/z"].to(dtype), official["cache/E"].to(dtype)
    references = {"x": reference_in(official, "nystrom"), "lin": reference_in(official, "cache/lin")}

    def features_of(rows):
        x = (chunks.flatten(0, 1)[rows] @ weights["W1"] + weights["b1"]).tanh() @ weights["W2"] + weights["b2"]
        return {"x": x, "lin": x @ matrix}

    def gradients(size):
        features = features_in_parts(features_of, chunks.shape[0] * chunks.shape[1], size)
        losses = {name: mmd_loss(features[name], reference)[0] for name, reference in references.items()}
        loss = weighted_sum(losses, {"x": 3, "lin": 7})
        return loss, dict(zip(weights, torch.autograd.grad(loss / 3, list(weights.values())), strict=True))

    frozen = official if dtype == torch.float64 else official_float32
    for size in (4, 5, None):
        loss, found = gradients(size)
        assert relative(loss, official["cache/loss_plain"]) < close(dtype)
        for name, gradient in found.items():
            assert relative(gradient, frozen[f"cache/grad_{name}"]) < close(dtype)


CONTROLLERS = {
    "default": {"total": 10},
    "satisfied": {"total": 10},
    "pid": {"proportional": 1.5, "integral": 0.1, "derivative": 0.2}
    | {"relative": True, "softmax": False, "error_clip": 2},
    "soft_pid": {"proportional": 0.5, "integral": 0.05, "derivative": 0.3}
    | {"total": 4, "temperature": 1, "smoothing": 0.3},
}


@pytest.mark.parametrize("run", CONTROLLERS)
def test_official_controller(run, official):
    controller = GatedController(tuple(official["pid/floors"].tolist()), **{**GATED, **CONTROLLERS[run]})
    state = controller.start()
    assert torch.equal(state.weights, official[f"pid/{run}/lambda_start"])
    for step, scores in enumerate(official[f"pid/{run}/scores"]):
        state = controller.updated(ControllerState.from_state(state.state_dict()), scores)
        torch.testing.assert_close(state.weights, official[f"pid/{run}/lambda"][step], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(state.average, official[f"pid/{run}/ema"][step], rtol=1e-12, atol=0)
    skipped = controller.updated(state, scores * torch.nan).state_dict()
    assert all(torch.equal(skipped[name], value) for name, value in state.state_dict().items())


# Official numbers of the other distances


def test_official_sliced_wasserstein(official):
    g, real, val, theta = (official[f"sw/{name}"] for name in ("G", "R", "V", "theta"))
    assert relative(sliced_wasserstein(g, real, theta), official["sw/p2"]) < 1e-13
    assert relative(sliced_wasserstein(g, real, theta, p=1), official["sw/p1"]) < 1e-13
    assert relative(sliced_wasserstein(val, real, theta), official["sw/floor_p2"]) < 1e-13
    g = g.clone().requires_grad_()
    power = sliced_power(g, real, theta)
    assert relative(power, official["sw/train_loss"]) < 1e-13
    assert relative(gradient_of(power, g), official["sw/train_grad"]) < 1e-12
    ratios = [
        sliced_wasserstein(encode(g), encode(real), directions)
        / sliced_wasserstein(encode(val), encode(real), directions)
        for encode, directions in (
            (lambda x: x, theta),
            (lambda x: x[:, :2], official["sw/theta_2d"]),
            (torch.tanh, theta),
        )
    ]
    assert relative(torch.stack(ratios), official["sw/ratios"]) < 1e-12


def test_official_distances_of_the_ablation(official):
    g, real = official["exact/g"].clone().requires_grad_(), official["exact/r"]
    exact = MMDReference.exact(real, official["exact/sigma"].item(), official["exact/k_rr"].item())
    loss, info = mmd_loss(g, exact)
    assert relative(info["mmd2"], official["exact/value"]) < 1e-12
    assert relative(raw_gradient(loss, info["mmd2"], g), official["exact/grad"]) < 1e-12
    fourier = FourierReference(*(official[f"rff/{name}"] for name in ("W", "b", "mu")))
    loss, info = fourier_loss(g, fourier)
    assert relative(info["mmd2"], official["rff/value"]) < 1e-12
    assert relative(raw_gradient(loss, info["mmd2"], g), official["rff/grad"]) < 1e-12
    half = official["frechet/half"]
    reference = FrechetReference(official["frechet/mu"], half @ half)
    without_ridge = official["frechet/trace"] - reference.trace  # the official trace is that of S, its root of S + 1e-6
    value = frechet_distance(*batch_statistics(g, ridge=1e-6), reference) + without_ridge
    assert relative(value, official["frechet/value"]) < 1e-9
    assert relative(gradient_of(value, g), official["frechet/grad"]) < 1e-9
    loss, _ = drift_loss(g[None], real[None], temperatures=(0.2, 0.05, 0.02))
    assert relative(loss.sum(), official["drifting/value"]) < 1e-9
    assert relative(gradient_of(loss.sum(), g), official["drifting/grad"][0]) < 1e-9


# Properties


def clusters(name, rows, width=6, count=5):
    means = 4 * normal("means", shape=(count, width))
    return means[torch.arange(rows) % count] + 0.5 * normal(name, shape=(rows, width))


def test_the_gradient_is_that_of_autograd():
    g, pool = clusters("generated", 13).requires_grad_(), clusters("real", 60)
    reference = MMDReference.fit(pool, landmarks=8, seed=1)
    loss, info = mmd_loss(g, reference, batch_size=4)
    k_gr = (gram(g, reference.landmarks, reference.bandwidth) @ reference.alpha).mean()
    plain = gram(g, g, reference.bandwidth).mean() - 2 * k_gr + reference.k_rr
    assert relative(info["mmd2"], plain) < 1e-12
    assert relative(raw_gradient(loss, info["mmd2"], g), gradient_of(plain, g)) < 1e-12
    assert (
        relative(mmd_loss(g @ torch.linalg.qr(normal("q", shape=(6, 6))).Q, reference)[1]["k_gg"], info["k_gg"]) < 1e-12
    )


def test_real_features_score_near_zero_and_others_do_not():
    pool = clusters("real", 400)
    reference = MMDReference.fit(pool, landmarks=40, seed=0)
    real = mmd_loss(clusters("more", 300), reference)[1]["mmd2"]
    assert abs(real.item()) < 3 * (1 - reference.k_rr) / 300
    assert mmd_loss(clusters("more", 300) + 1, reference)[1]["mmd2"] > 10 * real.abs()
    every = MMDReference.fit(pool, landmarks=pool, jitter=1e-9)
    assert every.alpha.sum().item() == pytest.approx(1, rel=1e-3)
    assert mmd_loss(pool, MMDReference.exact(pool, every.bandwidth))[1]["mmd2"].abs() < 1e-14
    assert mmd_loss(pool[:1], reference)[1]["k_gg"] == 1


def test_references_depend_on_the_seed_and_survive_a_round_trip():
    pool = clusters("real", 80)
    first, again, other = (MMDReference.fit(pool.float(), landmarks=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.landmarks, again.landmarks)
    assert not torch.equal(first.landmarks, other.landmarks)
    restored = MMDReference.from_state(first.state_dict()).to("cpu")
    assert restored.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in restored.state_dict().items())


def test_random_rows_are_a_keyed_draw_without_repetition():
    pool = clusters("real", 40)
    rows = random_rows(pool, 30, 0, "k-means")
    places = (rows[:, None] == pool).all(2).long().argmax(1)
    assert torch.equal(pool[places], rows)
    assert len(places.unique()) == 30
    assert places.max() >= 30  # not the first ones
    for seed, name in ((1, "k-means"), (0, "bandwidth")):
        assert not torch.equal(random_rows(pool, 30, seed, name), rows)
    assert torch.equal(random_rows(pool, 40, 0, "k-means"), pool)


def test_kmeans_finds_separate_clusters_and_refills_empty_ones():
    pool = clusters("real", 200)
    centres = kmeans(pool, 25)
    assert squared_distances(pool, centres).min(1).values.mean() < 0.5**2 * 6
    repeated = torch.tensor([[0.0], [0.0], [0.0], [5.0]], dtype=torch.float64)
    assert sorted(set(kmeans(repeated, 3)[:, 0].tolist())) == [0.0, 5.0]  # equal starts, so one cluster is empty
    assert nystrom_weights(repeated, kmeans(repeated, 3), 1.0).isfinite().all()


def test_sliced_wasserstein_of_shifted_sets_and_its_directions():
    a, directions = normal("a", shape=(30, 4)), sliced_directions(4, 50, seed=0)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(50, dtype=torch.float64))
    assert torch.equal(sliced_directions(4, 20, seed=0), directions[:, :20])
    assert not torch.equal(sliced_directions(4, 50, seed=1), directions)
    shift = normal("shift", shape=(1, 4))
    shuffled = a.flip(0) + shift
    assert relative(sliced_wasserstein(a, shuffled, directions), (shift @ directions).norm() / 50**0.5) < 1e-12
    same = a.clone().requires_grad_()
    zero = sliced_wasserstein(same, a, directions)
    assert zero == 0
    assert gradient_of(zero, same).isfinite().all()
    loss, info = sliced_loss(a, shuffled, directions)
    assert relative(loss, info["sw2"] / (info["sw2"] + 1e-7)) < 1e-12


def test_fourier_features_estimate_the_kernel():
    pool, bandwidth = clusters("real", 100), 4.0
    reference = FourierReference.fit(pool, bandwidth, features=4096)
    g = clusters("generated", 50) + 0.7
    estimate = fourier_loss(g, reference)[1]["mmd2"]
    assert relative(estimate, mmd_loss(g, MMDReference.exact(pool, bandwidth))[1]["mmd2"]) < 0.2


def test_the_joint_law_sees_labels_that_features_alone_do_not():
    """Right images with wrong labels: the marginal distances are 0, the joint ones are not."""
    features, labels = clusters("real", 200), torch.arange(200) % 5
    law = JointLaw.fit(features, classes=5)
    assert law.beta == pytest.approx(median_bandwidth(features) / 2**0.5)
    joint, wrong = law(features, labels), law(features, (labels + 1) % 5)
    assert joint.shape == (200, 11)
    distance = [
        frechet_distance(*batch_statistics(rows), FrechetReference(*batch_statistics(joint))) for rows in (joint, wrong)
    ]
    assert distance[0] < 1e-6 < 1 < distance[1]
    reference = MMDReference.exact(joint, median_bandwidth(joint))
    assert mmd_loss(joint, reference)[1]["mmd2"].abs() < 1e-12
    assert mmd_loss(wrong, reference)[1]["mmd2"] > 0.01
    product = gram(features, features, 2.0) * gram(law.codes[labels], law.codes[labels], 2.0 / law.beta)
    assert relative(gram(joint, joint, 2.0), product) < 1e-12
    new = features[:8].float().requires_grad_()
    mu, sigma = FeatureQueue(joint.float()).statistics(law(new, labels[:8]))
    assert gradient_of(mu.sum() + sigma.sum(), new).isfinite().all()


def test_bad_input_is_one_line():
    pool = clusters("real", 20)
    reference = MMDReference.fit(pool, landmarks=5)
    directions, gated = sliced_directions(6, 4, 0), GatedController((0.1,), **GATED)
    wrong = {
        "5 features, the reference has 6": lambda: mmd_loss(pool[:, :5], reference),
        "landmarks=21: the pool has 20 rows": lambda: MMDReference.fit(pool, landmarks=21),
        "landmarks=0": lambda: MMDReference.fit(pool, landmarks=0),
        "one each": lambda: MMDReference(pool, torch.ones(3), 1.0, 0.5),
        "bandwidth=0": lambda: MMDReference(pool, torch.ones(20), 0.0, 0.5),
        "one row has no distance": lambda: median_bandwidth(pool[:1]),
        "20 and 19 rows": lambda: sliced_wasserstein(pool, pool[1:], directions),
        "with 5 features": lambda: sliced_wasserstein(pool[:, :5], pool[:, :5], directions),
        "p=0": lambda: sliced_wasserstein(pool, pool, directions, p=0),
        "scores": lambda: gated.updated(gated.start(), torch.ones(2)),
        "floors": lambda: GatedController((0.0,), **{**GATED, "relative": True}),
        **{
            f"{name}={value}: it is": partial(replace, gated, **{name: value})
            for name, value in (("smoothing", 0), ("smoothing", 2), ("total", -3), ("most", 0), ("integral", -1))
        },
        "at least 2": lambda: JointLaw.fit(pool, classes=1),
        "beta=-1": lambda: JointLaw(torch.eye(2), -1),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
