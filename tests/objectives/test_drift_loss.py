"""The drifting loss and field: official numbers, identities, the ablations against a plain formula, two processes."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from common import normal, relative, uniform
from conftest import _load

from pmf_lightning import drift_loss, drifting_field

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
INPUTS = ("gen", "pos", "neg", "weight_gen", "weight_pos", "weight_neg")


@pytest.fixture(scope="module")
def official():
    return _load("drift_loss.npz")


@pytest.fixture(scope="module")
def official_values():
    return _load("drift_loss_f64.npz")


def case(official, name, dtype):
    given = {key: official[f"{name}/{key}"].to(dtype) for key in INPUTS if f"{name}/{key}" in official}
    given["gen"] = given["gen"].clone().requires_grad_()
    return given, official[f"{name}/R_list"].tolist()


def problem(batch=3, samples=5, positives=4, negatives=3, size=6, dtype=torch.float64):
    """Sets of different places and widths, and weights."""
    return {
        "gen": normal("gen", shape=(batch, samples, size), dtype=dtype).requires_grad_(),
        "pos": 0.7 * normal("pos", shape=(batch, positives, size), dtype=dtype) + 0.5,
        "neg": 1.3 * normal("neg", shape=(batch, negatives, size), dtype=dtype) - 0.2,
        "weight_gen": uniform("wg", count=batch * samples, low=0.5, high=1.5, dtype=dtype).view(batch, samples),
        "weight_pos": uniform("wp", count=batch * positives, low=0.5, high=1.5, dtype=dtype).view(batch, positives),
        "weight_neg": uniform("wn", count=batch * negatives, low=0.5, high=1.5, dtype=dtype).view(batch, negatives),
    }


# Official numbers


@DTYPES
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_official_numbers(name, dtype, official, official_values):
    given, temperatures = case(official, name, dtype)
    loss, info = drift_loss(**given, temperatures=temperatures)
    loss.sum().backward()
    rtol = 1e-4 if dtype == torch.float32 else 1e-10
    found = {"loss": loss.detach(), "scale": info["scale"], "loss_R": info["loss_R"]}
    for key, value in found.items():
        torch.testing.assert_close(value.double(), official_values[f"{name}/{key}"], rtol=rtol, atol=0)
        torch.testing.assert_close(value.float(), official[f"{name}/{key}"], rtol=1e-4, atol=0)
    assert info["scale"].ndim == 0
    assert info["loss_R"].shape == (len(temperatures),)
    torch.testing.assert_close(info["force_norm"] ** 2, info["loss_R"])
    assert given["gen"].grad.dtype == dtype
    assert relative(given["gen"].grad, official_values[f"{name}/grad_gen"]) < (2e-6 if rtol == 1e-4 else 1e-12)
    torch.testing.assert_close(
        given["gen"].grad.double(), official_values[f"{name}/grad_gen"], rtol=rtol, atol=rtol / 1e4
    )


@DTYPES
def test_equal_points_stay_where_they_are(dtype, official, official_values):
    given, temperatures = case(official, "f", dtype)
    loss, info = drift_loss(**given, temperatures=temperatures)
    loss.sum().backward()
    assert loss.max() < 1e-3
    assert given["gen"].grad.abs().max() < 1e-6
    assert info["loss_R"].max() < 1e-12
    torch.testing.assert_close(info["scale"].double(), official_values["f/scale"], rtol=1e-4, atol=0)


def test_the_order_of_temperatures_is_that_of_the_numbers_logged(official):
    given, temperatures = case(official, "b", torch.float64)
    loss, info = drift_loss(**given, temperatures=temperatures)
    back, reverse = drift_loss(**given, temperatures=temperatures[::-1])
    torch.testing.assert_close(back, loss)
    torch.testing.assert_close(reverse["loss_R"].flip(0), info["loss_R"])
    assert (info["loss_R"].diff().abs() > 1e-3).all()


# Against a formula written out point by point


def written_out(
    gen, pos, neg, weight_gen, weight_pos, weight_neg, temperatures, attraction, repulsion, kind, floor=1e-6
):
    """The official loss with the options of the ablations, written out in loops; returns loss [B]."""
    batch, samples, size = gen.shape
    targets, weights = torch.cat((gen, neg, pos), 1), torch.cat((weight_gen, weight_neg, weight_pos), 1)
    count, pushing = targets.shape[1], samples + neg.shape[1]
    distance = torch.zeros(batch, samples, count, dtype=gen.dtype)
    for b, i, j in product(range(batch), range(samples), range(count)):
        distance[b, i, j] = max(1e-8, sum((gen[b, i, k] - targets[b, j, k]) ** 2 for k in range(size))) ** 0.5
    scale = (distance * weights[:, None]).mean() / weights.mean()
    total = torch.zeros_like(gen)
    for temperature in temperatures:
        k = torch.exp(-(distance / scale + 100 * torch.eye(samples, count)) / temperature)
        over_y, over_x = k / k.sum(2, keepdim=True), k / k.sum(1, keepdim=True)
        kernel = {"both": (over_y * over_x).sqrt(), "y": over_y, "none": k}[kind].clamp_min(floor**0.5) * weights[
            :, None
        ]
        force = torch.zeros_like(gen)
        for b, i in product(range(batch), range(samples)):
            pull, push = kernel[b, i, pushing:].sum(), kernel[b, i, :pushing].sum()
            for j in range(count):
                factor = attraction * push if j >= pushing else -repulsion * pull
                force[b, i] += kernel[b, i, j] * factor * (targets[b, j] - gen[b, i]) / (scale / math.sqrt(size))
        total += force / force.square().mean().clamp_min(1e-8).sqrt()
    return total.square().mean((1, 2)), total / (scale / math.sqrt(size))


@pytest.mark.parametrize("kind", ["both", "y", "none"])
@pytest.mark.parametrize(("attraction", "repulsion"), [(1.0, 1.0), (1.5, 1), (1.0, 2.0), (1.0, 0.0)])
def test_ablations_are_the_formula_written_out(kind, attraction, repulsion):
    given, temperatures = problem(batch=2, samples=3), (0.3, 0.1)
    loss, _ = drift_loss(
        **given, temperatures=temperatures, attraction=attraction, repulsion=repulsion, normalisation=kind
    )
    plain = {key: value.detach() for key, value in given.items()}
    expected, force = written_out(
        **plain, temperatures=temperatures, attraction=attraction, repulsion=repulsion, kind=kind
    )
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    loss.sum().backward()
    numbers = force[0].numel()
    torch.testing.assert_close(given["gen"].grad, -2 * force / numbers, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("floor", [0, 1e-3])
def test_the_floor_of_affinities_is_an_option(floor):
    given = problem(batch=2, samples=3)
    loss, _ = drift_loss(**given, affinity_floor=floor)
    plain = {key: value.detach() for key, value in given.items()}
    options = {"temperatures": (0.2, 0.05, 0.02), "attraction": 1, "repulsion": 1, "kind": "both"}
    expected, _ = written_out(**plain, **options, floor=floor)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    assert relative(loss, written_out(**plain, **options)[0]) > 1e-4


@pytest.mark.parametrize(("floor", "grows"), [(1e-6, False), (0, True)])
def test_the_floor_draws_many_samples_to_their_mean(floor, grows):
    """Samples with half of the data's spread move apart; the floor of the far positives turns that around."""
    points = torch.Generator().manual_seed(0)
    pos, other = torch.randn(2, 1, 64, 256, generator=points)
    gen = (other / 2).requires_grad_()
    drift_loss(gen, pos, temperatures=(0.02,), affinity_floor=floor)[0].sum().backward()
    from_the_mean = gen.detach() - gen.detach().mean(1, keepdim=True)
    assert ((-gen.grad * from_the_mean).sum() > 0) == grows


def test_the_defaults_are_the_balanced_field():
    given = problem()
    loss, _ = drift_loss(**given)
    named, _ = drift_loss(
        **given, temperatures=(0.2, 0.05, 0.02), attraction=1, repulsion=1, normalisation="both", affinity_floor=1e-6
    )
    assert torch.equal(loss, named)
    others = [{"attraction": 1.5}, {"repulsion": 1.5}, {"normalisation": "y"}, {"normalisation": "none"}]
    for option in others:
        assert relative(drift_loss(**given, **option)[0], loss) > 1e-3, option


def test_no_negatives_and_weight_zero_are_the_same_pull():
    """Negatives of weight 0 neither push nor count; they only widen the softmax and the mean that makes the scale."""
    given = problem()
    given["weight_neg"] = torch.zeros_like(given["weight_neg"])
    loss, info = drift_loss(**given)
    far = given | {"neg": given["neg"] + 1e4}  # too far for the softmax to see
    away, info_far = drift_loss(**far)
    alone, info_alone = drift_loss(**{k: v for k, v in given.items() if "neg" not in k})
    torch.testing.assert_close(away, alone, rtol=0.05, atol=0)
    empty, _ = drift_loss(**given | {"neg": given["neg"][:, :0], "weight_neg": None})
    assert torch.equal(empty, alone)
    assert loss.shape == alone.shape
    # (D * W).mean() / W.mean() does not see what has no weight.
    torch.testing.assert_close(info["scale"], info_alone["scale"])
    torch.testing.assert_close(info_far["scale"], info_alone["scale"], rtol=1e-4, atol=0)


# Identities of the plain field


@DTYPES
def test_the_plain_field_is_algorithm_a1(dtype):
    """One sample at a time, from the definitions: V+ and V- share the product of their normalising sums."""
    x, y = normal("x", shape=(4, 3)), normal("y", shape=(6, 3)) + 0.3
    temperature = 0.7
    logits = torch.cat((-torch.cdist(x, x) - 1e6 * torch.eye(4), -torch.cdist(x, y)), 1) / temperature
    kernel = ((logits - logits.logsumexp(1, keepdim=True)).exp() * (logits - logits.logsumexp(0)).exp()).sqrt()
    expected = torch.empty_like(x)
    for i in range(4):
        push, pull = kernel[i, :4], kernel[i, 4:]
        mean_neg, mean_pos = (push @ x) / push.sum(), (pull @ y) / pull.sum()
        expected[i] = push.sum() * pull.sum() * ((mean_pos - x[i]) - (mean_neg - x[i]))
    for y_neg in (None, x):
        given = [None if points is None else points.to(dtype) for points in (x, y, y_neg)]
        given[2] = given[0] if y_neg is x else None
        field = drifting_field(*given, temperature)
        assert field.dtype == dtype
        assert relative(field, expected) < (1e-5 if dtype == torch.float32 else 1e-12)
    batched = drifting_field(torch.stack((x, 2 * x)), torch.stack((y, 2 * y)), None, temperature)
    torch.testing.assert_close(batched[0], expected)
    torch.testing.assert_close(
        drifting_field(2 * x, 2 * y, None, 2 * temperature), 2 * expected
    )  # no scale but its own


@pytest.mark.parametrize("kind", ["both", "y", "none"])
def test_swapping_positives_and_negatives_flips_the_field(kind):
    x, p, q = normal("x", shape=(2, 5, 3)), normal("p", shape=(2, 4, 3)) + 1, normal("q", shape=(2, 7, 3)) - 1
    field = drifting_field(x, p, q, 0.5, normalisation=kind)
    torch.testing.assert_close(drifting_field(x, q, p, 0.5, normalisation=kind), -field, rtol=1e-10, atol=1e-13)
    assert field.abs().min() > 1e-6


@pytest.mark.parametrize("kind", ["both", "y", "none"])
def test_the_field_vanishes_where_the_sets_are_equal(kind):
    x, p = normal("x", shape=(5, 3)), normal("p", shape=(4, 3))
    field = drifting_field(x, p, p.flip(0), 0.5, normalisation=kind)
    assert field.abs().max() < 1e-14
    unbalanced = drifting_field(x, p, p.flip(0), 0.5, normalisation=kind, attraction=1.5)
    assert unbalanced.abs().max() > 1e-3


def test_the_field_points_from_negatives_to_positives():
    x = 0.1 * normal("x", shape=(8, 2))
    p, q = x + torch.tensor([1.0, 0.0]).double(), x - torch.tensor([1.0, 0.0]).double()
    field = drifting_field(x, p, q, 0.5)
    assert field[:, 0].min() > 0.1
    assert field[:, 1].abs().max() < 0.5 * field[:, 0].min()


@DTYPES
def test_translation_changes_nothing(dtype):
    given, shift = problem(dtype=dtype), 50 * normal("shift", shape=(6,), dtype=dtype)
    moved = {key: value + shift if key in ("gen", "pos", "neg") else value for key, value in given.items()}
    (loss, info), (other, other_info) = drift_loss(**given), drift_loss(**moved)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # float32 rounds the moved points themselves, to 4e-6
    torch.testing.assert_close(other, loss, rtol=tolerance, atol=0)
    torch.testing.assert_close(other_info["scale"], info["scale"], rtol=tolerance, atol=0)
    x, y = given["gen"].detach(), given["pos"]
    field = drifting_field(x, y, None, 0.5)
    assert relative(drifting_field(x + shift, y + shift, None, 0.5), field) < tolerance


def test_scaling_changes_nothing_but_the_scale():
    given = problem()
    larger = {key: 7 * value if key in ("gen", "pos", "neg") else value for key, value in given.items()}
    (loss, info), (other, other_info) = drift_loss(**given), drift_loss(**larger)
    torch.testing.assert_close(other, loss, rtol=1e-3, atol=0)  # the least distance, 1e-4, does not scale
    torch.testing.assert_close(other_info["scale"], 7 * info["scale"], rtol=1e-4, atol=0)


def test_the_value_says_nothing_and_the_norm_does():
    """With one temperature the mean loss is 1, near or far; the norm before it is normalised falls."""
    norms = []
    for gap in (3.0, 0.3):
        given = {"gen": normal("a", shape=(2, 64, 2)), "pos": normal("b", shape=(2, 64, 2)) + gap}
        loss, info = drift_loss(**given, temperatures=(0.2,))
        assert loss.mean().item() == pytest.approx(1, rel=1e-9)
        norms.append(info["force_norm"].item())
    assert norms[1] < 0.5 * norms[0]


# Gradients and kinds of numbers


def test_gradient_flows_through_the_samples_alone():
    given = {key: value.detach().requires_grad_() for key, value in problem().items()}
    loss, info = drift_loss(**given)
    loss.sum().backward()
    assert given["gen"].grad.flatten(1).norm(dim=1).min() > 0
    for name, value in given.items():
        assert name == "gen" or value.grad is None, name
    assert not any(value.requires_grad for value in info.values())
    x = normal("x", shape=(3, 2)).requires_grad_()
    assert not drifting_field(x, normal("y", shape=(3, 2)), None, 0.5).requires_grad


def test_a_step_along_the_gradient_is_the_force():
    """The gradient is that of |x - fixed goal|^2, not that through the goal."""
    given = problem()
    loss, _ = drift_loss(**given)
    (gradient,) = torch.autograd.grad(loss.sum(), given["gen"])
    _, samples, size = given["gen"].shape
    force_squared = gradient.square().mean((1, 2)) * (samples * size / 2) ** 2
    _, info = drift_loss(**given)
    torch.testing.assert_close(loss.detach(), force_squared * info["scale"] ** 2 / size, rtol=1e-9, atol=0)


def test_half_precision_is_widened():
    given = {key: value.detach().bfloat16() for key, value in problem().items()}
    gen = given.pop("gen").requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, info = drift_loss(gen, **given)
        field = drifting_field(gen, given["pos"], None, 0.5)
    assert loss.dtype == info["scale"].dtype == field.dtype == torch.float32
    wide, _ = drift_loss(gen.detach().double(), **{key: value.double() for key, value in given.items()})
    torch.testing.assert_close(loss.detach().double(), wide, rtol=1e-4, atol=0)
    loss.sum().backward()
    assert gen.grad.dtype == torch.bfloat16
    assert gen.grad.isfinite().all()


def test_products_are_of_full_precision(monkeypatch):
    """TF32, which matmul_precision=high gives to a GPU, would leave nothing of small distances."""
    seen, product = [], torch.baddbmm

    def noted(*args, **options):
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **options)

    monkeypatch.setattr(torch, "baddbmm", noted)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        drift_loss(**problem())
        drifting_field(normal("x", shape=(3, 4)), normal("y", shape=(5, 4)), None, 0.5)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_inputs_are_left_as_they_are():
    given = {key: value.detach() for key, value in problem().items()}
    before = {key: value.clone() for key, value in given.items()}
    drift_loss(**given)
    drifting_field(given["gen"], given["pos"], given["neg"], 0.5)
    assert all(torch.equal(given[key], before[key]) for key in given)


# Two processes


class Exchange:
    """Lets ``count`` threads add up their sums and counts, as processes do."""

    def __init__(self, count):
        self.barrier, self.slots = threading.Barrier(count, timeout=600), [None] * count

    def mean(self, place):
        def add_up(sums, counts):
            self.slots[place] = (sums, counts)
            self.barrier.wait()
            total = [sum(parts) for parts in zip(*self.slots, strict=True)]
            self.barrier.wait()
            return total[0] / total[1]

        return add_up


@pytest.mark.parametrize("cut", [1, 2], ids=["unequal", "equal"])
def test_two_processes_equal_one(cut):
    given = problem(batch=2 * cut if cut == 2 else 3)
    loss, info = drift_loss(**given)
    (gradient,) = torch.autograd.grad(loss.sum(), given["gen"])
    exchange = Exchange(2)

    def process(place):
        rows = slice(0, cut) if place == 0 else slice(cut, None)
        mine = {key: value.detach()[rows] for key, value in given.items()}
        gen = mine.pop("gen").clone().requires_grad_()
        part, part_info = drift_loss(gen, **mine, mean=exchange.mean(place))
        return part.detach(), torch.autograd.grad(part.sum(), gen)[0], part_info

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(process, range(2)))
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient, rtol=1e-9, atol=1e-14)
    for _, _, part_info in parts:
        for name in ("scale", "loss_R", "force_norm"):
            torch.testing.assert_close(part_info[name], info[name], rtol=1e-10, atol=0)
    apart, _ = drift_loss(**{key: value[:cut] for key, value in given.items()})
    assert relative(apart, loss[:cut]) > 1e-3  # without the exchange it is another loss


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos": torch.zeros(3, 4, 5)}, ["gen [3, 5, 6]", "pos [3, 4, 5]"]),
        ({"pos": torch.zeros(2, 4, 6)}, ["pos [2, 4, 6]", "only in the number of points"]),
        ({"pos": torch.zeros(3, 0, 6)}, ["pos [3, 0, 6]", "empty"]),
        ({"pos": torch.zeros(4, 6)}, ["pos [4, 6]", "3 axes"]),
        ({"gen": torch.zeros(5, 6)}, ["gen [5, 6]", "3 axes"]),
        ({"gen": torch.zeros(6), "neg": None, "weight_neg": None}, ["gen [6]", "3 axes"]),
        ({"neg": torch.zeros(3, 3, 7)}, ["neg [3, 3, 7]"]),
        ({"neg": torch.zeros(2, 0, 6), "weight_neg": None}, ["neg [2, 0, 6]"]),
        ({"weight_neg": torch.ones(3, 2)}, ["weight_neg [3, 2]", "neg [3, 3, 6]"]),
        ({"weight_gen": torch.ones(5)}, ["weight_gen [5]"]),
        ({"temperatures": ()}, ["temperatures=[]"]),
        ({"temperatures": (0.2, 0.0)}, ["0.0", "above 0"]),
        ({"temperatures": (0.2, math.nan)}, ["nan"]),
        ({"attraction": -1.0}, ["attraction=-1.0"]),
        ({"attraction": 0.0, "repulsion": 0.0}, ["one is above"]),
        ({"affinity_floor": -1e-9}, ["affinity_floor=-1e-09"]),
        ({"normalisation": "x"}, ["normalisation=x", "both, y, none"]),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(ValueError, match=":") as caught:
        drift_loss(**problem(dtype=torch.float32) | changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("x", "p", "q", "temperature"),
    [
        ((5, 3), (4, 2), (4, 3), 0.5),
        ((5, 3), (4, 3), (0, 3), 0.5),
        ((5, 3), (4, 3), (4, 3), 0.0),
        ((3,), (3,), (3,), 1),
    ],
)
def test_bad_fields_are_refused(x, p, q, temperature):
    with pytest.raises(ValueError, match=r"axes|only in the number|empty|above 0"):
        drifting_field(torch.zeros(x), torch.zeros(p), torch.zeros(q), temperature)
