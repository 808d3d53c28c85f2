"""Keyed draws: reproducible in any order and any sharding, of the right law, and no touch of the global generators."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import CLASSES, SHAPE, blank, objective, rows, tiny_network
from matching import GENERATORS, label_batch, matching

from pmf_lightning import Batch, build, generate, image_noise
from pmf_lightning.objectives.base import QueueBatch
from pmf_lightning.objectives.crops import CropLaw
from pmf_lightning.objectives.discrepancies.choices import SlicedWasserstein
from pmf_lightning.objectives.masked_autoencoder import MaskedAutoencoder
from pmf_lightning.utils import rng
from pmf_lightning.utils.rng import BatchRows

NAMES = ("t", "r", "noise", "omega", "t_min", "t_max", "drop")
MANY = 8192
KEY = 7346017372464610397


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in NAMES)


def interleave(parts, name):
    return torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)


def distance(values, cdf):
    """Kolmogorov-Smirnov distance of ``values`` from the law ``cdf``, times sqrt(n): above 2 once in 1500 times."""
    values = values.double().sort().values
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    gap = torch.maximum(cdf(values) - steps[:-1], steps[1:] - cdf(values)).max()
    return gap.item() * len(values) ** 0.5


def logit_normal_cdf(mean, std):
    return lambda t: torch.special.ndtr((torch.logit(t) - mean) / std)


def global_states():
    """Of torch and numpy. Python's own is advanced by beartype's checks; test_imports.py shows that we never use it."""
    numbers = np.random.get_state()
    return torch.get_rng_state().tolist(), (numbers[0], numbers[1].tolist(), *numbers[2:])


# Keys


def test_key_is_the_same_in_every_process():
    assert rng.key(0, "noise", 3) == KEY
    assert rng.key(0, "noise", "3") != rng.key(0, "noise", 3) != rng.key(3, "noise", 0)


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal, rng.permutation])
def test_streams_do_not_depend_on_the_order_of_calls(draw):
    first = draw(1, "a", count=20)
    draw(1, "b", count=7)
    torch.rand(3, generator=rng.generator(1, "a"))
    assert torch.equal(draw(1, "a", count=20), first)
    assert not torch.equal(draw(1, "b", count=20), first)
    assert not torch.equal(draw(2, "a", count=20), first)


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 100])
def test_number_i_does_not_depend_on_the_count(draw, count):
    assert torch.equal(draw("prefix", count=count), draw("prefix", count=1000)[:count])


def test_laws_of_streams():
    assert distance(rng.uniform("law", count=MANY), lambda x: x) < 2
    assert distance(rng.normal("law", count=MANY), torch.special.ndtr) < 2
    assert rng.permutation("law", count=50).sort().values.tolist() == list(range(50))


def test_normal_is_finite_at_the_lowest_uniform(monkeypatch):
    monkeypatch.setattr(rng, "uniform", lambda *names, count: torch.zeros(count, dtype=torch.float64))
    assert rng.normal("lowest", count=2).isfinite().all()


def test_images_depend_on_their_row_alone():
    images = rng.normal_images(4, "noise", rows=torch.tensor([3, 0, 9]), shape=(2, 5, 5))
    alone = rng.normal_images(4, "noise", rows=torch.tensor([9]), shape=(2, 5, 5))
    assert torch.equal(images[2], alone[0])
    assert not torch.equal(images[0], images[1])


# The global generators


def test_nothing_reads_or_advances_the_global_generators(tiny_config):
    batch, numbers = rows(dtype=torch.float32)
    network = tiny_network(torch.float32)
    states, weights, losses = [], [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = global_states()
        weights.append(build(tiny_config).network.state_dict())
        objective().draw(batch, 0, 0)
        losses.append(objective()(network, batch, numbers).total)
        generate(network, image_noise(0, 0, 2, SHAPE), torch.tensor([0, CLASSES]), 2, objective=objective())
        assert global_states() == before
        states.append(before)
    assert states[0] != states[1]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# Draws of a step


IMAGES = blank(32, SHAPE)
QUEUES = QueueBatch(torch.zeros(8, 1, *SHAPE), torch.zeros(8, dtype=torch.long), torch.zeros(8, 1, *SHAPE))
CROP = CropLaw((0.2, 1.0), (0.75, 4 / 3))
DRAWN = {
    "pmf": lambda: (objective(label_dropout=0.5, perceptual={"a": 1.0}, crop=CROP), IMAGES),
    "pmf, uniform times": lambda: (objective(uniform_fraction=0.5), IMAGES),
    "jit": lambda: (replace(GENERATORS["heun"][0](), label_dropout=0.5), IMAGES),
    "drifting": lambda: (replace(GENERATORS["one_step"][0](), unguided_fraction=0.5), QUEUES),
    "mae": lambda: (MaskedAutoencoder(4, 1, 0.5, 0.1, 0, 0, 10, CROP, flip=True), IMAGES),
    "matching": lambda: (matching("one_step", discrepancy=SlicedWasserstein(directions=4)), label_batch()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draw_is_a_function_of_seed_and_step(name, monkeypatch):
    """Every field changes with the seed and the step, and so does the key of every stream that makes it."""
    (law, batch), keys, make = DRAWN[name](), [], rng.generator
    monkeypatch.setattr(rng, "generator", lambda *names, **options: keys.append(names) or make(*names, **options))

    def drawn(seed, step):
        keys.clear()
        fields = vars(law.draw(batch, seed, step))
        nested = [value for value in fields.values() if isinstance(value, Mapping)]
        found = {field: value for part in (fields, *nested) for field, value in part.items()}
        return {field: value for field, value in found.items() if isinstance(value, torch.Tensor)}, set(keys)

    first, streams = drawn(0, 5)
    again, same_streams = drawn(0, 5)
    assert streams == same_streams
    assert all(torch.equal(again[field], value) for field, value in first.items())
    for seed, step in ((0, 6), (1, 5), (5, 0)):
        other, other_streams = drawn(seed, step)
        assert not streams & other_streams, (seed, step)
        assert [field for field, value in first.items() if torch.equal(other[field], value)] == [], (seed, step)


def test_streams_of_one_step_are_different_numbers():
    """Ranks of the raw numbers behind each name must differ: one stream used twice would tie two laws together."""
    drawn = objective(flow_matching_fraction=0.0).draw(blank(64), 0, 0)
    named = {name: getattr(drawn, name).argsort().tolist() for name in ("t", "r", "omega", "t_min", "t_max")}
    for one, other in itertools.combinations(named, 2):
        assert named[one] != named[other], (one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_the_batch(dtype):
    drawn = objective().draw(blank(4, SHAPE, dtype), 0, 0)
    assert all(getattr(drawn, name).dtype == dtype for name in NAMES[:-1])
    assert drawn.drop.dtype == torch.bool
    assert drawn.noise.shape == (4, *SHAPE)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"uniform_fraction": 0.3, "omega_beta": 2.0, "label_dropout": 0.6}])
def test_shards_interleave_to_the_global_batch(count, changes):
    whole = objective(**changes).draw(blank(16, SHAPE), 7, 3)
    parts = [objective(**changes).draw(blank(16 // count, SHAPE), 7, 3, BatchRows(i, count)) for i in range(count)]
    for name in NAMES:
        assert torch.equal(interleave(parts, name), getattr(whole, name)), name


def test_shard_outside_its_count_is_refused():
    with pytest.raises(ValueError, match="shard index 2"):
        BatchRows(2, 2)


@pytest.mark.parametrize(("size", "fraction", "tied"), [(16, 0.5, 8), (7, 0.5, 3), (10, 0.25, 2), (6, 0, 0), (6, 1, 6)])
def test_exactly_the_fraction_is_tied(size, fraction, tied):
    drawn = objective(flow_matching_fraction=float(fraction)).draw(blank(size), 0, 0)
    assert (drawn.t == drawn.r).sum() == tied
    assert ((drawn.r >= 0) & (drawn.r <= drawn.t) & (drawn.t <= 1)).all()


def test_tied_rows_have_the_whole_interval_and_only_they():
    drawn = objective().draw(blank(64), 0, 0)
    tied = drawn.t == drawn.r
    assert ((drawn.t_min == 0) == tied).all()
    assert ((drawn.t_max == 1) == tied).all()


@pytest.mark.parametrize(("size", "count"), [(5, 4), (3, 5), (4, 4)])
def test_tied_and_dropped_rows_are_dealt_out_evenly(size, count):
    law = objective(label_dropout=0.3)
    for step in range(20):
        parts = [law.draw(blank(size), 0, step, BatchRows(i, count)) for i in range(count)]
        tied = [int((part.t == part.r).sum()) for part in parts]
        dropped = [int(part.drop.sum()) for part in parts]
        assert sum(tied) == size * count // 2
        assert max(tied) - min(tied) <= 1
        assert max(dropped) - min(dropped) <= 1


@pytest.mark.parametrize("probability", [0.1, 0.8])
def test_dropped_rows_are_tied_rows_first(probability):
    size, steps, law = 32, 100, objective(label_dropout=probability)
    counts = []
    for step in range(steps):
        drawn = law.draw(blank(size), 0, step)
        tied, dropped = drawn.t == drawn.r, drawn.drop
        assert not (dropped & ~tied).any() or dropped[tied].all()
        counts.append(int(dropped.sum()))
    counts = torch.tensor(counts, dtype=torch.float64)
    variance = size * probability * (1 - probability)  # of a binomial count
    assert abs(counts.mean() - size * probability) < 4 * (variance / steps) ** 0.5
    assert 0.6 < counts.var() / variance < 1.5


# Laws


def test_tied_times_are_logit_normal():
    drawn = objective(flow_matching_fraction=1.0, P_mean=-0.4, P_std=1.2).draw(blank(MANY), 0, 0)
    assert distance(drawn.t, logit_normal_cdf(-0.4, 1.2)) < 2
    assert abs(torch.logit(drawn.t.double()).mean() + 0.4) < 4 * 1.2 / MANY**0.5


def test_free_times_are_the_larger_and_the_smaller_of_two():
    drawn = objective(flow_matching_fraction=0.0).draw(blank(MANY), 0, 0)
    cdf = logit_normal_cdf(0.8, 0.8)
    assert distance(drawn.t, lambda t: cdf(t) ** 2) < 2
    assert distance(drawn.r, lambda r: 1 - (1 - cdf(r)) ** 2) < 2


def test_tied_and_free_rows_of_one_batch_keep_their_own_laws():
    """A tied time is one draw, not the larger of two (that is iMF's law)."""
    drawn = objective().draw(blank(MANY), 0, 0)
    tied = drawn.t == drawn.r
    cdf = logit_normal_cdf(0.8, 0.8)
    assert distance(drawn.t[tied], cdf) < 2
    assert distance(drawn.t[~tied], lambda t: cdf(t) ** 2) < 2


def test_one_coin_replaces_both_times_by_uniform_ones():
    drawn = objective(uniform_fraction=0.25, flow_matching_fraction=0.0, P_mean=0.0, P_std=1e-7).draw(blank(MANY), 0, 0)
    kept_t, kept_r = ((time - 0.5).abs() < 1e-5 for time in (drawn.t, drawn.r))
    assert abs((~kept_t).double().mean() - 0.25) < 4 * (0.25 * 0.75 / MANY) ** 0.5
    assert (kept_t != kept_r).double().mean() < 0.001
    assert distance(drawn.t[~kept_t], lambda t: t**2) < 2
    assert distance(drawn.r[~kept_r], lambda r: 1 - (1 - r) ** 2) < 2


def test_uniform_times_of_tied_rows():
    drawn = objective(uniform_fraction=1.0, flow_matching_fraction=1.0).draw(blank(MANY), 0, 0)
    assert distance(drawn.t, lambda t: t) < 2


@pytest.mark.parametrize(
    ("beta", "cdf"),
    [
        (1.0, lambda w: w.log() / np.log(8)),
        (2.0, lambda w: (1 - 1 / w) / (1 - 1 / 8)),
        (0.5, lambda w: (w.sqrt() - 1) / (8**0.5 - 1)),
    ],
)
def test_guidance_scale(beta, cdf):
    omega = objective(omega_beta=beta).draw(blank(MANY), 0, 0).omega
    assert omega.min() >= 1
    assert omega.max() <= 8
    assert distance(omega, cdf) < 2


def test_guidance_interval():
    drawn = objective(flow_matching_fraction=0.0).draw(blank(MANY), 0, 0)
    assert distance(drawn.t_min, lambda t: 2 * t.clamp(0, 0.5)) < 2
    assert distance(drawn.t_max, lambda t: 2 * t.clamp(0.5, 1) - 1) < 2


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_noise_is_normal_of_the_given_scale(scale):
    noise = objective(noise_scale=scale).draw(blank(64, (1, 16, 16)), 0, 0).noise
    assert distance(noise.flatten() / scale, torch.special.ndtr) < 2
    assert not torch.equal(noise[0], noise[1])


def test_labels_do_not_matter_to_draws():
    other = Batch(torch.ones(16, 1, 1, 1), torch.arange(16))
    assert same(objective().draw(blank(16), 0, 0), objective().draw(other, 0, 0))
