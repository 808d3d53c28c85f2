"""The metrics room: classifier, its cache, Frechet distance and the quality of generated images."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.linalg
import torch
from features_of_tests import Tiny, numpy_frechet
from omegaconf import OmegaConf

from pmf_lightning import compose
from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.classifier import train as training
from pmf_lightning.encoders.classifier.network import Classifier
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier, shifted, train_classifier
from pmf_lightning.evaluation.frechet import FrechetDistance, check_finite, in_batches
from pmf_lightning.evaluation.small_data import (
    RealImageScorer,
    SmallDataEvaluator,
    SmallDataSettings,
    balanced_labels,
    metric_name,
)
from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.small_data import SmallDataEvaluation
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.rng import generator, normal_images

CONF = Path(__file__).parents[2] / "conf" / "metrics"
QUICK = ClassifierSettings(
    side=32, seed=0, features=16, steps=12, batch=24, lr=5e-3, warmup_steps=2, weight_decay=0.0, shift=0.1
)  # far from converged, but enough for the easy images below


@dataclass(frozen=True)
class Patches(DataSourceBase):
    """Three classes told apart by which corner is bright: learned in a few steps."""

    name: str = "Tiny patches"
    resolution: int = 12
    channels: int = 1
    classes: int = 3
    salt: int = 0

    def check(self):
        pass

    def train(self):
        return self.rows("train", 60)

    def held_out(self):
        return self.rows("held out", 30)

    def fingerprint(self):
        return f"patches {self.salt}"

    def rows(self, split, count):
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 90, (count, 1, 12, 12), generator=generator("patches", split, self.salt))
        images = noise.to(torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 6 * (label // 2) :][:, :6, 6 * (label % 2) :][:, :, :6] += 160
        return ArrayDataset(images, labels)


def uint8_noise(*names, count, side=8, channels=1):
    return torch.randint(0, 256, (count, channels, side, side), generator=generator(*names)).to(torch.uint8)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# classifier


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (1, 50), (3, 96)])
def test_classifier_takes_images_of_any_size(channels, side):
    classifier = Classifier(channels, 7, 16, seed=0, side=32)
    images = uint8_noise("sizes", count=3, side=side, channels=channels)
    assert classifier.embed(images).shape == (3, classifier.num_features) == (3, 16)
    assert classifier(images).shape == (3, 7)
    assert classifier.shrink(images).shape[-1] == min(side, 32)


def test_shrinking_averages_so_that_fine_patterns_do_not_alias():
    checkers = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 255
    torch.testing.assert_close(Classifier(1, 2, 4, seed=0, side=32).shrink(checkers), torch.zeros(1, 1, 32, 32))


def test_one_image_is_judged_the_same_in_any_company():
    classifier, images = Classifier(1, 3, 8, seed=0, side=32), uint8_noise("company", count=5)
    torch.testing.assert_close(classifier(images)[:2], classifier(images[:2]))


def test_shift_moves_each_image_by_its_own_offset():
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    moved = shifted(images, torch.tensor([[1, 0], [0, -2]]))
    assert torch.equal(moved[0, 0, 1:], images[0, 0, :-1])
    assert torch.equal(moved[0, 0, 0], images[0, 0, 0])
    assert torch.equal(moved[1, 0, :, :2], images[1, 0, :, 2:])


def test_training_is_bit_for_bit_repeatable_and_leaves_the_global_generators_alone():
    split = Patches().train()
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = train_classifier(split, 3, QUICK)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # where Lightning may call it
            assert same_weights(one, train_classifier(split, 3, QUICK))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert same_weights(one, train_classifier(split, 3, QUICK))
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert same_weights(one, train_classifier(ArrayDataset(split.images.numpy(), split.labels), 3, QUICK))
    assert not same_weights(one, train_classifier(split, 3, replace(QUICK, seed=1)))


def test_training_refuses_one_class_and_reports_divergence():
    split = Patches().train()
    with pytest.raises(UserError, match="metrics=none"):
        train_classifier(ArrayDataset(split.images, torch.zeros_like(split.labels)), 1, QUICK)
    with pytest.raises(UserError, match="diverged"):
        train_classifier(split, 3, replace(QUICK, lr=float("inf")))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_are_learned(seed):
    source, settings = Digits("digits", 32, 1, 10, 360), compose(["metrics=small"]).metrics.classifier
    train, held_out = source.train(), source.held_out()
    classifier = train_classifier(train, 10, replace(instantiate(settings), seed=seed))
    assert (classifier(held_out.images).argmax(1) == held_out.labels).double().mean() >= 0.98


# cache


@pytest.fixture
def trainings(monkeypatch):
    count, train = [], training.train_classifier
    monkeypatch.setattr(training, "train_classifier", lambda *given: count.append(given) or train(*given))
    return count


def test_classifier_is_trained_once_for_the_same_data_and_settings(tmp_path, trainings):
    first = cached_classifier(Patches(), QUICK, str(tmp_path))
    assert same_weights(first, cached_classifier(Patches(), QUICK, str(tmp_path)))
    assert len(trainings) == 1
    cached_classifier(Patches(salt=1), QUICK, str(tmp_path))
    cached_classifier(Patches(), replace(QUICK, lr=1e-3), str(tmp_path))
    assert len(trainings) == 3


def test_images_of_one_class_are_told_apart_by_their_turns(tmp_path):
    """With features of quarter turns only the distance is measured: there is no class to hit."""
    source = Patches(classes=1)
    split = source.train()
    turned = training.QuarterTurns(split)
    images, turns = turned.batch([0, 5, 10, 239])
    assert (len(turned), turns.tolist(), turned.labels[239]) == (240, [0, 1, 2, 3], 3)
    for image, row, turn in zip(images, (0, 1, 2, 59), turns.tolist(), strict=True):
        assert torch.equal(image, split[row][0].rot90(turn, (1, 2)))
    scores = SmallDataEvaluator(source, SmallDataSettings(True, 1, (), 16, QUICK), str(tmp_path))(
        lambda labels, _: torch.zeros(len(labels), 1, 12, 12)
    )
    assert scores.fd > scores.fd_floor
    assert (scores.n, scores.class_accuracy, scores.real_accuracy, scores.per_class_accuracy) == (30, None, None, [])


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_classifier_is_trained_again_with_a_notice(tmp_path, trainings, caplog, damage):
    first = cached_classifier(Patches(), QUICK, str(tmp_path))
    (path,) = tmp_path.glob("classifiers/*.pt")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x40
    path.write_bytes({"cut": content[:-500], "empty": b""}.get(damage, content))
    if damage == "foreign":
        torch.save(Classifier(1, 3, 5, seed=0, side=32).state_dict(), path)
    with caplog.at_level(logging.WARNING):
        assert same_weights(first, cached_classifier(Patches(), QUICK, str(tmp_path)))
    assert len(trainings) == 2
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert "damaged" in caplog.text
    cached_classifier(Patches(), QUICK, str(tmp_path))
    assert len(trainings) == 2


# Frechet distance


class Flatten(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1).float() / 64


def gaussian_pixels(name, count, middle, spread):
    images = normal_images(name, rows=torch.arange(count), shape=(1, 2, 3)) * spread + middle
    images[:, :, 1] += 0.5 * images[:, :, 0]  # correlated pixels
    return images.round().clamp(0, 255).to(torch.uint8)


def closed_form(real, fake):
    one, two = (images.flatten(1).double().numpy() / 64 for images in (real, fake))
    s1, s2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return np.square(one.mean(0) - two.mean(0)).sum() + np.trace(s1 + s2 - 2 * root)


def test_frechet_distance_equals_the_closed_form_of_two_gaussians():
    real, fake = gaussian_pixels("real", 300, 90, 20), gaussian_pixels("fake", 200, 110, 12)
    assert FrechetDistance(Flatten(), real, 64)(fake) == pytest.approx(closed_form(real, fake), rel=1e-9)
    assert FrechetDistance(Flatten(), real.numpy(), 7)(fake) == pytest.approx(closed_form(real, fake), rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_when_rank_deficient():
    images = gaussian_pixels("real", 300, 90, 20)
    assert FrechetDistance(Flatten(), images, 64)(images.flip(0)) == pytest.approx(0, abs=1e-9)
    assert FrechetDistance(Flatten(), images[:3], 64)(images[:3]) == pytest.approx(0, abs=1e-6)


def test_reference_is_kept_between_sets_and_the_network_is_not_changed():
    classifier, real = Classifier(1, 3, 8, seed=0, side=32), uint8_noise("real", count=20)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        distance = FrechetDistance(classifier.embed, real, batch=8)
    sets = [uint8_noise("fake", i, count=10) for i in range(2)]
    values = [distance(images) for images in (*sets, sets[0])]
    assert values[0] == values[2] != values[1]
    assert values[0] == pytest.approx(FrechetDistance(classifier.embed, real, 3)(sets[0]), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())  # also the dtype


def test_frechet_distance_refuses_fewer_than_two_images():
    images = gaussian_pixels("real", 5, 90, 20)
    for real, fake in [(images[:1], images), (images, images[:1]), (images, images[:0])]:
        with pytest.raises(UserError, match="at least 2"):
            FrechetDistance(Flatten(), real, 4)(fake)


def test_non_finite_pixels_are_counted():
    images = torch.zeros(2, 1, 4, 4)
    check_finite(images, "samples")
    images[0, 0, 0, :2], images[1, 0, 3, 3] = float("nan"), float("-inf")
    with pytest.raises(UserError, match="samples: 3 of 32 pixels"):
        check_finite(images, "samples")


# quality


@pytest.fixture(scope="module")
def classifier():
    split = Patches().train()
    return train_classifier(split, 3, QUICK)


def judged(classifier, images, labels):
    held_out = Patches().held_out()
    scorer = RealImageScorer(classifier, Patches().train().images, held_out.images, held_out.labels, batch=8)
    return scorer.measure_parts(zip(in_batches(images, 8), labels.split(8), strict=True))


def test_held_out_images_score_the_floor_and_worse_sets_score_worse(classifier):
    held_out = Patches().held_out()
    real = judged(classifier, held_out.images, held_out.labels)
    assert real.fd == real.fd_floor > 0
    assert real.n == 30
    assert real.class_accuracy == real.real_accuracy == 1
    noise = judged(classifier, uint8_noise("bad", count=30, side=12), held_out.labels)
    one_class = judged(classifier, held_out.images[::3].repeat(3, 1, 1, 1), torch.zeros(30, dtype=torch.int64))
    assert noise.fd > 3 * real.fd
    assert one_class.fd > 3 * real.fd
    assert one_class.fd_floor == real.fd_floor
    assert one_class.per_class_accuracy == [1, None, None]


def test_accuracy_counts_the_labels_asked_for(classifier):
    held_out = Patches().held_out()
    asked = held_out.labels.clone()
    asked[:6] = (asked[:6] + 1) % 3  # two of each class are asked to be another
    quality = judged(classifier, held_out.images, asked)
    assert quality.class_accuracy == pytest.approx(24 / 30)
    assert quality.per_class_accuracy == pytest.approx([8 / 10] * 3)
    assert quality.real_accuracy == 1


def test_another_number_or_size_of_images_is_refused(classifier):
    images, labels = Patches().held_out().images, Patches().held_out().labels
    with pytest.raises(ValueError, match="generated images"):
        judged(classifier, images[:-1], labels[:-1])
    with pytest.raises(ValueError, match="generated images"):
        judged(classifier, images[..., :8, :8], labels)


def quick_probe(cache_dir, source=None):
    settings = SmallDataSettings(enabled=True, every_images=1, extra_steps=[], batch_size=7, classifier=QUICK)
    return SmallDataEvaluator(source or Patches(), settings, str(cache_dir))


def test_probe_asks_for_balanced_labels_in_chunks_and_prepares_once(tmp_path, trainings):
    probe, asked = quick_probe(tmp_path), []
    held_out = Patches().held_out()
    assert trainings == []

    def generate(labels, first):
        asked.append((first, labels))
        return to_float(held_out.images[first : first + len(labels)]) * 1.001  # unclipped

    for _ in range(2):
        quality = probe(generate)
        assert quality.fd == quality.fd_floor
        assert quality.class_accuracy == 1
    assert [first for first, _ in asked[:5]] == [0, 7, 14, 21, 28]
    assert torch.equal(torch.cat([labels for _, labels in asked[:5]]), balanced_labels(30, 3))
    assert len(trainings) == 1


def test_moments_of_real_images_in_further_features_are_measured_once_and_then_equal(tmp_path):
    source, settings = Patches(), quick_probe(tmp_path).settings

    def measured(**changes):
        seen = []

        class Counting(Tiny):
            def open(self, device):
                network = super().open(device)
                return lambda images: seen.append(len(images)) or network(images)

        probe = SmallDataEvaluator(source, replace(settings, extractors={"tiny": Counting()}, **changes), str(tmp_path))
        images = source.held_out().images.flip(-1)
        return probe(lambda labels, first: to_float(images[first : first + len(labels)])), sum(seen)

    train, held_out = len(source.train()), len(source.held_out())
    quality, seen = measured()
    assert seen == train + 2 * held_out
    assert measured() == (quality, held_out)  # the generated images alone
    for stored in (tmp_path / "statistics").glob("*.npz"):
        stored.write_bytes(stored.read_bytes()[:-50])
    assert measured() == (quality, train + 2 * held_out)
    changed, seen = measured(reference_images=train - 1)
    assert seen == train - 1 + held_out  # the held-out images are the same
    assert changed.others != quality.others
    assert measured(batch_size=settings.batch_size + 1)[1] == train + 2 * held_out


def test_distances_in_further_features_have_their_names_and_floors(tmp_path):
    source, settings = Patches(), quick_probe(tmp_path).settings
    probe = SmallDataEvaluator(source, replace(settings, extractors={"tiny": Tiny()}), str(tmp_path))
    images = source.held_out().images.flip(-1)
    quality = probe(lambda labels, first: to_float(images[first : first + len(labels)]))
    network = Tiny().open("cpu")
    real, held, made = (
        network(each).features.numpy() for each in (source.train().images, source.held_out().images, images)
    )
    assert quality.others == {"fd_tiny": pytest.approx(numpy_frechet(real, made), abs=1e-6)}
    assert quality.other_floors == {"fd_tiny": pytest.approx(numpy_frechet(real, held), abs=1e-6)}
    assert len(list((tmp_path / "statistics").glob("*.npz"))) == 2
    plain = quick_probe(tmp_path)(lambda labels, first: to_float(images[first : first + len(labels)]))
    assert replace(quality, others={}, other_floors={}) == plain
    others = {"averages": Mock(spec=EMA), "progress": Mock(spec=ThroughputBar)}
    shown = SmallDataEvaluation(probe, "fd_x", every_steps=1, sampling={}, extra_steps=[], **others)
    assert shown.metrics(quality).keys() == {"fd_x", "fd_tiny", "class_accuracy"}
    assert shown.display_names().keys() == {"fd", "fd_floor", "fd_tiny", "fd_tiny_floor"}
    assert shown.summary(quality).keys() >= shown.display_names().keys()
    with pytest.raises(
        UserError, match=r"extractors\.colour: it sees images of 3 channels, data Tiny patches has 1; leave"
    ):
        SmallDataEvaluator(source, replace(settings, extractors={"colour": Tiny(channels=(3,))}), None)


def test_fd_lite0_without_its_package_is_refused_before_the_run(monkeypatch):
    settings = build_part("metrics", compose(["metrics=small_lite0"]).metrics)
    monkeypatch.setattr("pmf_lightning.encoders.battery.lite0.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^metrics\.extractors\.lite0\.encoder: .*pip install 'pmf_lightning"):
        SmallDataEvaluator(Patches(), settings, None)


def test_probe_refuses_what_cannot_be_measured(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        quick_probe(tmp_path)(lambda labels, first: torch.full((len(labels), 1, 12, 12), float("nan")))
    lonely = Patches()
    object.__setattr__(lonely, "held_out", lambda: Patches().rows("held out", 1))
    with pytest.raises(UserError, match="holds out 1"):
        quick_probe(tmp_path, lonely)(lambda labels, first: None)
    with pytest.raises(UserError, match=r"metrics\.batch_size=0"):
        SmallDataSettings(enabled=True, every_images=1, extra_steps=[], batch_size=0, classifier=QUICK)


def test_balanced_labels_and_metric_name():
    assert balanced_labels(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert metric_name(Patches()) == "fd_tiny_patches"
    assert metric_name(Digits("digits", 32, 1, 10, 360)) == "fd_digits"


def test_configs_build():
    settings = instantiate(compose(["metrics=small"]).metrics)
    assert isinstance(settings, SmallDataSettings)
    assert settings.enabled
    assert settings.classifier.features == 64
    assert OmegaConf.load(CONF / "none.yaml") == {"enabled": False}
