"""Scores and how they are made: names, quantisers, moments, distances, ranks, and torch-fidelity beside them."""

import functools
import os
import socket
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from features_of_tests import Tiny, noise_levels, numpy_frechet, of_config, protocol, write_inception, write_pngs
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from pmf_lightning.config.compose import compose
from pmf_lightning.data.transforms import QUANTISERS, to_uint8, to_uint8_floor, to_uint8_shifted
from pmf_lightning.encoders.base import Features, extract, full_precision
from pmf_lightning.encoders.extractors import ModuleFeatures
from pmf_lightning.encoders.inception import FILE, Inception
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.frechet import NonFiniteError
from pmf_lightning.evaluation.image_files import ImageSaver, open_images
from pmf_lightning.evaluation.moments import Gaussian, Moments
from pmf_lightning.evaluation.protocol import score_name
from pmf_lightning.evaluation.references import Reference
from pmf_lightning.evaluation.scores import FLAGS
from pmf_lightning.evaluation.statistics import statistics
from pmf_lightning.sampling.generate import image_noise
from pmf_lightning.utils.errors import UserError

CPU = torch.device("cpu")


# Quantisers and names


def test_quantisers_by_hand():
    x = torch.tensor([-2.0, -1.0, 1 / 255, 0.0, 0.25, 0.999, 1.0, 3.0], dtype=torch.float64)
    assert to_uint8(x).tolist() == [0, 0, 128, 128, 159, 255, 255, 255]  # 127.5 rounds to even, 159.375 down
    assert to_uint8_floor(x).tolist() == [0, 0, 128, 127, 159, 254, 255, 255]
    assert to_uint8_shifted(x).tolist() == [0, 0, 128, 128, 159, 255, 255, 255]


@pytest.mark.parametrize("rule", QUANTISERS)
def test_every_level_comes_back_from_its_middle(rule):
    levels = torch.arange(256, dtype=torch.uint8)
    above = {"floor": 0.25 / 127.5}.get(rule, 0.0)  # truncation: rounding errors must not fall to the level below
    assert torch.equal(QUANTISERS[rule](levels.double() / 127.5 - 1 + above), levels)


def test_truncation_is_half_a_level_darker():
    x = torch.linspace(-0.99, 0.99, 10_001, dtype=torch.float64)
    lost = to_uint8(x).double().mean() - to_uint8_floor(x).double().mean()
    assert lost == pytest.approx(0.5, abs=0.01)
    assert (to_uint8(x) != to_uint8_shifted(x)).double().mean() < 0.001


def test_half_precision_is_widened_first():
    x = torch.linspace(-1, 1, 999).bfloat16()
    for rule in QUANTISERS.values():
        assert torch.equal(rule(x), rule(x.float()))


@pytest.mark.parametrize(
    ("score", "extractor", "n", "name"),
    [
        ("fid", "inception", 50_000, "fid50k_jit"),
        ("fid", "inception", 1000, "fid1k_jit"),
        ("is", "inception", 1500, "is1500_jit"),
        ("kid", "inception", 360, "kid360_jit"),
        ("fid", "classifier", 1000, "fd1k_classifier_jit"),
        ("kid", "DINO v2", 2000, "kd2k_dino_v2_jit"),
        ("recall", "inception", 50_000, "recall50k_jit"),
    ],
)
def test_names_carry_protocol_and_count(score, extractor, n, name):
    assert score_name(score, protocol(), extractor, n) == name


def test_the_protocols_of_the_papers():
    jit, adm, jax, drifting = (of_config(name) for name in ("jit", "adm", "pmf_jax", "drifting"))
    assert [p.quantiser for p in (jit, adm, jax, drifting)] == ["round", "floor", "shifted", "floor"]
    assert [p.inception_shuffle for p in (jit, adm, jax, drifting)] == [True, False, True, True]
    for name, p in {"jit": jit, "adm": adm, "pmf_jax": jax, "drifting": drifting}.items():
        assert (p.name, p.n, p.extractor, p.inception_splits, p.neighbours) == (name, 50_000, "inception", 10, 3)
        assert p.reference.files[256].endswith(".npz")
    assert (jit.seed, jit.reference.dialect, jax.reference.dialect) == (2020, "mu_sigma", "ref_mu_sigma")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantiser": "rund"}, "did you mean round"),
        ({"n": 1}, "protocol.n=1: set it to 2 or more"),
        ({"neighbours": 0}, "protocol.neighbours=0"),
        ({"kid_size": 1}, "protocol.kid_size=1"),
        ({"inception_splits": 0}, "protocol.inception_splits=0: set it to 1 or more"),
        ({"kid_subsets": 0}, "protocol.kid_subsets=0"),
        ({"reference_images": 0}, "protocol.reference_images=0"),
    ],
)
def test_protocols_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        protocol(**change)


# The Frechet distance


def test_closed_form_of_diagonal_gaussians():
    mu1, mu2 = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 1.0, 0.5]).double()
    v1, v2 = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    expected = ((mu1 - mu2) ** 2).sum() + ((v1.sqrt() - v2.sqrt()) ** 2).sum()
    assert Gaussian(mu1, v1.diag()).distance(mu2, v2.diag()) == pytest.approx(expected.item(), rel=1e-12)


def test_closed_form_of_commuting_covariances_that_are_not_diagonal():
    turn = torch.linalg.qr(torch.arange(25).double().view(5, 5).sin()).Q
    v1, v2 = torch.arange(1, 6).double(), torch.arange(5, 0, -1).double() ** 2
    s1, s2 = turn @ v1.diag() @ turn.T, turn @ v2.diag() @ turn.T
    zero = torch.zeros(5).double()
    expected = ((v1.sqrt() - v2.sqrt()) ** 2).sum().item()
    assert Gaussian(zero, s1).distance(zero, s2) == pytest.approx(expected, rel=1e-10)
    assert Gaussian(zero, s2).distance(zero, s1) == pytest.approx(expected, rel=1e-10)


def test_one_dimension_and_equal_gaussians():
    one = torch.ones(1, dtype=torch.float64)
    assert Gaussian(one, 4 * one[None]).distance(3 * one, 25 * one[None]) == pytest.approx(4 + 9)
    features = noise_levels("equal", 40).flatten(1)[:, :20].double()
    moments = features.mean(0), torch.from_numpy(np.cov(features.numpy(), rowvar=False))
    assert Gaussian(*moments).distance(*moments) == pytest.approx(0, abs=1e-8 * moments[1].trace().item())


def test_near_singular_covariances_are_finite_and_right():
    """Few samples in many dimensions: the cross term is the nuclear norm of the product of centred samples."""
    x, y = (noise_levels(name, 12).flatten(1).double() / 255 for name in "xy")
    centred = [(part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y)]
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    s1, s2 = (part.T @ part for part in centred)
    expected = (x.mean(0) - y.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * cross
    distance = Gaussian(x.mean(0), s1).distance(y.mean(0), s2)
    assert np.isfinite(distance)
    assert distance == pytest.approx(expected.item(), rel=1e-4)
    assert Gaussian(x.mean(0), s1).near_singular
    assert not Gaussian(x.mean(0), s1 + torch.eye(192).double()).near_singular


@pytest.mark.parametrize(("smallest", "singular"), [(-1e-17, True), (1e-13, True), (1e-11, False)])
def test_nearly_singular_is_below_the_rounding_of_the_largest_eigenvalue(smallest, singular):
    values = torch.tensor([3.0, 1.0, 3 * smallest]).double()
    assert Gaussian(torch.zeros(3).double(), values.diag()).near_singular == singular


def test_covariances_that_rounding_made_indefinite():
    values = torch.tensor([1.0, 1e-17, -1e-17]).double()
    assert Gaussian(torch.zeros(3).double(), values.diag()).distance(torch.zeros(3).double(), values.diag()) == 0


# Moments


def test_moments_are_numpys():
    seen = noise_levels("moments", 31).flatten(1)[:, :7].float() / 50
    moments = Moments(7, 3, torch.tensor([2, 30, 4]))
    moments.update(Features(seen[20:], seen[20:, :3]), 20)
    moments.update(Features(seen[:20], seen[:20, :3]), 0)
    measured = moments.compute()
    assert measured.n == 31
    np.testing.assert_allclose(measured.mu, seen.double().mean(0), rtol=1e-14)
    np.testing.assert_allclose(measured.sigma, np.cov(seen.double().numpy(), rowvar=False), rtol=1e-12)
    assert torch.equal(measured.features, seen[[2, 4, 30]])
    assert torch.equal(measured.logits, seen[:, :3])
    assert measured.mu.dtype == measured.sigma.dtype == torch.float64


def test_moments_keep_nothing_that_nobody_needs():
    moments = Moments(2, 0, None)
    moments.update(Features(torch.ones(3, 2), torch.ones(3, 9)), 0)
    measured = moments.compute()
    assert measured.features is None
    assert measured.logits is None


# Evaluators


@pytest.fixture(scope="module")
def real() -> Reference:
    images = noise_levels("real", 40)
    return statistics(lambda first, end: images[first:end], 40, Tiny(), 9, 40, CPU, {"classes": 4})


def evaluator(real, batch_size=8, **changes) -> Evaluator:
    return Evaluator(protocol(**changes), Tiny(), real, batch_size)


def dark(labels, first):
    """Float images by number, darker than the real ones, some pixels beyond [-1, 1]."""
    return 0.6 * image_noise(3, first, len(labels), (3, 8, 8)) - 0.3 + 0.1 * labels.view(-1, 1, 1, 1)


def test_scores_equal_torch_fidelitys_on_the_same_features(real):
    scores = evaluator(real)(dark, 33, 3)
    levels = to_uint8(dark(torch.arange(33) % 3, 0))
    seen = extract(Tiny().open(CPU), levels, 5, CPU)
    stats = [fid_features_to_statistics(part.double()) for part in (seen.features, real.features)]
    assert scores.fid == pytest.approx(fid_statistics_to_metric(*stats, False)["frechet_inception_distance"], rel=1e-6)
    assert scores.fid == pytest.approx(numpy_frechet(seen.features.double().numpy(), real.features.numpy()), rel=1e-6)
    isc = isc_features_to_metric(seen.logits, 5, True, 2020)
    assert (scores.inception_score, scores.inception_score_std) == pytest.approx(tuple(isc.values()), rel=1e-6)
    kid = kid_features_to_metric(
        seen.features, real.features, kid_subsets=7, kid_subset_size=10, rng_seed=2020, verbose=False
    )
    assert (scores.kid, scores.kid_std) == pytest.approx(tuple(kid.values()), rel=1e-6)
    assert scores.n == 33


def test_precision_and_recall_equal_a_direct_computation(real):
    scores = evaluator(real)(dark, 33, 3)
    fake = extract(Tiny().open(CPU), to_uint8(dark(torch.arange(33) % 3, 0)), 5, CPU).features.double().numpy()
    some = real.features[:30].double().numpy()

    def inside(points, balls):
        """The share of points that lie in the ball of some sample, whose radius is to its third neighbour."""
        between = np.sqrt(((balls[:, None] - balls[None]) ** 2).sum(-1))
        radius = np.sort(between, axis=1)[:, 3]
        return (np.sqrt(((points[:, None] - balls[None]) ** 2).sum(-1)) <= radius).any(1).mean()

    assert scores.precision == pytest.approx(inside(fake, some), abs=1e-6)
    assert scores.recall == pytest.approx(inside(some, fake), abs=1e-6)
    assert 0 < scores.precision < 1


def test_an_inception_score_without_shuffle_goes_in_order(real):
    seen = extract(Tiny().open(CPU), to_uint8(dark(torch.arange(33) % 3, 0)), 5, CPU)
    scores = evaluator(real, inception_shuffle=False)(dark, 33, 3)
    assert scores.inception_score == pytest.approx(
        isc_features_to_metric(seen.logits, 5, False)["inception_score_mean"], rel=1e-6
    )
    assert scores.inception_score != evaluator(real)(dark, 33, 3).inception_score


def test_the_quantiser_is_the_protocols(real):
    kept = {}
    for rule in QUANTISERS:
        evaluator(real, quantiser=rule)(
            dark, 16, 4, save=lambda images, labels, first, rule=rule: kept.setdefault((rule, first), images)
        )
        assert torch.equal(kept[rule, 8], QUANTISERS[rule](dark(torch.arange(8, 16) % 4, 8)))
    assert not torch.equal(kept["round", 0], kept["floor", 0])


def test_whole_levels_are_taken_as_they_are(real):
    images = noise_levels("levels", 12)
    kept = []
    evaluator(real)(lambda labels, first: images[first : first + len(labels)], 12, 4, save=lambda *x: kept.append(x[0]))
    assert torch.equal(torch.cat(kept), images)


def test_flags_say_what_a_number_is_not(real):
    scores = evaluator(real)(dark, 6, 4)
    assert {"rank-deficient", "near-singular", "not-full-count", "unbalanced-labels"} <= set(scores.flags)
    assert "small-kid-subsets" in scores.flags
    assert "other-reference" in scores.flags
    full = evaluator(real, n=48)(dark, 48, 4)
    assert full.flags == ("other-reference",)
    published = Reference(real.mu, real.sigma, 40, real.features, file={"path": "/some/tiny8.npz"})
    assert evaluator(published, n=48)(dark, 48, 4).flags == ()
    few_features = Reference(real.mu, real.sigma, 40, real.features[:20])
    assert evaluator(few_features, n=48)(dark, 48, 4).flags == ("few-reference-features", "other-reference")
    assert "other-extractor" in evaluator(real, extractor="inception")(dark, 48, 4).flags
    assert set(scores.flags) < set(FLAGS)


def test_scores_that_cannot_be_had_are_none(real):
    bare = Reference(real.mu, real.sigma)
    scores = evaluator(bare)(dark, 4, 4)
    assert (scores.kid, scores.precision, scores.recall, scores.inception_score) == (None,) * 4
    assert "few-inception-images" in scores.flags
    assert set(scores.named(protocol(), "inception")) == {"fid4_jit"}
    few = evaluator(real, inception_splits=1)(dark, 3, 1)
    assert few.inception_score >= 1
    assert few.precision is None


def test_images_of_a_reference_become_features(real):
    images = noise_levels("real", 40)
    pictures = Reference(real.mu, real.sigma, 40, images=images)
    first = Reference(real.mu, real.sigma, 40, real.features[:30])
    torch.testing.assert_close(evaluator(pictures).reference_features, first.features)
    of_images, of_features = evaluator(pictures)(dark, 33, 3), evaluator(first)(dark, 33, 3)
    assert of_images.kid == pytest.approx(of_features.kid, rel=1e-5)
    assert (of_images.precision, of_images.recall) == (of_features.precision, of_features.recall)


def test_pixels_that_are_not_finite_are_counted_and_fatal(real):
    def broken(labels, first):
        images = dark(labels, first)
        images[0, 0, 0, :3] = torch.nan
        return images

    with pytest.raises(NonFiniteError, match=r"generated images 0 to 7: 3 of 1536 pixels are not finite"):
        evaluator(real)(broken, 33, 3)


def test_evaluating_draws_no_global_random_numbers(real):
    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluator(real)(dark, 33, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_chunks_do_not_change_images_or_scores_beyond_rounding(real):
    few, many = evaluator(real, batch_size=5)(dark, 33, 3), evaluator(real, batch_size=100)(dark, 33, 3)
    assert few.fid == pytest.approx(many.fid, rel=1e-9)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (0, 8), (9, 0)])
def test_too_few_images_are_refused(real, n, batch_size):
    with pytest.raises(UserError, match="at least"):
        evaluator(real, batch_size=batch_size)(dark, n, 3)


def test_precision_is_full_inside_and_as_before_after():
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_any_module_makes_features(real):
    class Means(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.full((3,), 2.0))

        def forward(self, images):
            return images.float().mean((2, 3)) * self.scale

    module = ModuleFeatures("means", Means(), features=3, batch=4)
    images = noise_levels("real", 40)
    reference = statistics(lambda first, end: images[first:end], 40, module, 8, 40, CPU, {})
    scores = Evaluator(protocol(), module, reference, 8)(dark, 33, 3)
    levels = to_uint8(dark(torch.arange(33) % 3, 0)).double().mean((2, 3)) * 2
    assert scores.fid == pytest.approx(
        numpy_frechet(levels.numpy(), images.double().mean((2, 3)).numpy() * 2), rel=1e-5
    )
    assert scores.inception_score is None
    other = Means()
    other.scale.data += 1
    assert ModuleFeatures("means", other, 3, 4).fingerprint() != module.fingerprint()
    with pytest.raises(UserError, match=r"extractor.features=4: extractor means returned \(4, 3\)"):
        extract(ModuleFeatures("means", Means(), 4, 4).open(CPU), images, 4, CPU)


class Elsewhere(torch.Tensor):
    """Stands in for weights on a GPU: numpy cannot have them before they come to the CPU."""

    def numpy(self, *_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_fingerprint_is_the_same_wherever_the_module_is():
    here, there = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    there.load_state_dict(here.state_dict())
    for name, weight in here.named_parameters():
        there.register_parameter(name, torch.nn.Parameter(weight.detach().as_subclass(Elsewhere)))
    assert isinstance(there.state_dict()["bias"], Elsewhere)
    words = ModuleFeatures("means", here, 3, 4).fingerprint()
    assert ModuleFeatures("means", there, 3, 4).fingerprint() == words
    assert ModuleFeatures("means", here.bfloat16(), 3, 4).fingerprint() != words


def test_objects_that_can_be_called_are_features_too():
    averages = functools.partial(torch.mean, dim=(1, 2, 3), keepdim=False)
    assert ModuleFeatures("means", averages, 1, 4).fingerprint() == "means functools.partial"
    assert ModuleFeatures("means", torch.relu, 1, 4).fingerprint().endswith("relu")


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_images_of_a_killed_evaluation_are_not_mixed_in(tmp_path, kind):
    killed = ImageSaver(kind, tmp_path, 9, 1)
    killed(noise_levels("killed", 5), torch.arange(5), 4)
    saver, images = ImageSaver(kind, tmp_path, 4, 1), noise_levels("again", 4)
    for first in (0, 2):
        saver(images[first : first + 2], torch.arange(first, first + 2), first)
    saver.finish()
    stored = open_images(saver.path, 3)
    assert len(stored) == 4
    assert torch.equal(stored(0, 4), images)
    assert [path.name for path in tmp_path.iterdir()] == [saver.path.name]


# Ranks


def dealt(rank, world, port, folder, real, generate, n):
    """One process of a world: evaluate, keep PNG and .npz, and write down what came out."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world)
        judge = evaluator(real, batch_size=4)
        kept = [ImageSaver(kind, folder / kind, n, 3) for kind in ("png", "npz")]
        measured = judge.measure(generate, n, 3, lambda *x: [keep(*x) for keep in kept])
        for keep in kept:
            keep.finish()
        scores = judge(generate, n, 3)
        torch.save([scores, measured.mu, measured.sigma, measured.features, measured.logits], folder / f"{rank}.pt")
    except Exception as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    finally:
        dist.destroy_process_group()


def world_of(size, folder, real, generate=dark, n=23):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    context = mp.get_context("fork")
    ranks = [context.Process(target=dealt, args=(r, size, port, folder, real, generate, n)) for r in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    return folder


def images_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pngs = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "png" / "images").glob("*.png"))])
    with np.load(folder / "npz" / "images.npz") as arrays:
        assert (arrays["arr_1"] == np.arange(23) % 3).all()
        return pngs, arrays["arr_0"]


def test_one_two_and_three_ranks_agree(real, tmp_path):
    """23 images in chunks of 4: six chunks, the last of three images; no world of two or three divides them."""
    worlds = [world_of(size, tmp_path / str(size), real) for size in (1, 2, 3)]
    expected = to_uint8(dark(torch.arange(23) % 3, 0)).permute(0, 2, 3, 1).numpy()
    one = torch.load(worlds[0] / "0.pt", weights_only=False)
    for size, folder in enumerate(worlds, 1):
        for images in images_of(folder):
            assert (images == expected).all()
        assert not (folder / "npz" / ".images.parts").exists()
        for rank in range(size):
            scores, mu, sigma, features, logits = torch.load(folder / f"{rank}.pt", weights_only=False)
            assert torch.equal(features, one[3])
            assert torch.equal(logits, one[4])
            assert (mu - one[1]).abs().max() <= 1e-10
            assert (sigma - one[2]).abs().max() <= 1e-10
            assert scores.fid == pytest.approx(one[0].fid, rel=1e-9)
            assert (scores.kid, scores.precision, scores.recall) == (one[0].kid, one[0].precision, one[0].recall)
            assert scores.inception_score == one[0].inception_score


def test_more_ranks_than_chunks(real, tmp_path):
    folder = world_of(3, tmp_path / "w", real, n=7)
    alone = evaluator(real, batch_size=4)(dark, 7, 3)
    assert torch.load(folder / "2.pt", weights_only=False)[0].fid == pytest.approx(alone.fid, rel=1e-9)


def broken_on_the_second_rank(labels, first):
    images = dark(labels, first)
    if first == 4:
        images[1, 2, 3, 4] = torch.inf
    return images


def test_what_fails_on_one_rank_fails_on_all(real, tmp_path):
    folder = world_of(2, tmp_path / "w", real, broken_on_the_second_rank)
    words = [(folder / f"{rank}.error").read_text().splitlines()[0] for rank in (0, 1)]
    assert words[1] == "NonFiniteError: " + words[1].partition(": ")[2]
    assert "generated images 4 to 7: 1 of 768 pixels" in words[1]
    assert words[0].startswith("NonFiniteError: rank 1: generated images 4 to 7")


# Inception


def test_missing_inception_weights_say_what_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as refused:
        Inception("inception", None, False, 8).check()
    words = str(refused.value)
    assert FILE == "weights-inception-2015-12-05-6726825d.pth"
    assert f"not at {tmp_path}/checkpoints/{FILE}" in words
    assert "extractor.weights=" in words
    assert "extractor.download=true" in words
    Inception("inception", None, True, 8).check()
    with pytest.raises(UserError, match=r"extractor.weights: the weights of Inception are not at .*gone.pth"):
        Inception("inception", str(tmp_path / "gone.pth"), True, 8).check()


def test_downloads_happen_only_when_asked_for_and_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def fetched(url, path, hash_prefix):
        asked.append((url.rpartition("/")[2], hash_prefix))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    with pytest.raises(UserError):
        Inception("inception", None, False, 8).open(CPU)
    assert asked == []
    with pytest.raises(UserError, match=r"cannot be fetched \(OSError: no network\).*extractor.weights="):
        Inception("inception", None, True, 8).open(CPU)
    assert asked == [(FILE, "6726825d")]


def test_files_that_are_not_inceptions_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"extractor.weights=.*other.pth: not the weights of Inception"):
        Inception("inception", str(path), False, 8).open(CPU)
    torch.save({"code": print}, path)
    with pytest.raises(UserError, match="not the weights of Inception"):
        Inception("inception", str(path), False, 8).open(CPU)


@pytest.mark.slow
def test_our_scores_equal_torch_fidelitys_on_the_same_pngs_and_weights(tmp_path):
    """Random weights, two clearly different sets; statistics through make_stats, scores through evaluate."""
    from torch_fidelity import calculate_metrics

    from pmf_lightning.evaluate import evaluate
    from pmf_lightning.make_stats import make_stats

    fake = noise_levels("fake", 18, (3, 32, 32))
    real = noise_levels("coarse", 16).repeat_interleave(4, 2).repeat_interleave(4, 3)
    folders = write_pngs(tmp_path / "fake", fake), write_pngs(tmp_path / "real", real)
    weights = write_inception(tmp_path / "inception.pth", torch.cat([fake[:4], real[:4]]))
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        **{"isc": True, "fid": True, "kid": True, "prc": True, "cuda": False, "cache": False, "verbose": False},
        **{"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(weights)},
        **{"batch_size": 8, "kid_subsets": 9, "kid_subset_size": 12, "save_cpu_ram": True},
    )
    shared = [f"extractor.weights={weights}", "extractor.batch=8", "batch_size=10"]
    stats = tmp_path / "stats.npz"
    make_stats(compose([f"images={folders[1]}", f"out={stats}", *shared], "make_stats"))
    rules = ["protocol.kid_subsets=9", "protocol.kid_size=12"]
    asked = [f"images={folders[0]}", f"reference={stats}", f"out={tmp_path / 'out'}"]
    ours = evaluate(compose([*asked, *shared, *rules], "evaluate"))
    assert ours["scores"]["fid18_jit"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["inception_score_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
    assert theirs["frechet_inception_distance"] > 10  # the sets do differ, the features do vary
    assert theirs["inception_score_mean"] > 1.05
    assert {"rank-deficient", "reference-rank-deficient", "not-full-count"} <= set(ours["flags"])
