"""Drifting's objective: the sum over features by hand, its draws, its stream of data, and two processes as one."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import CLASSES, SHAPE, normal, relative, tiny_network
from shrunk import BACKBONE

from pmf_lightning import Drifting, QueueBatch, UserError, compose, drift_loss, generate
from pmf_lightning.data.dataset import ArrayDataset, DataSourceBase
from pmf_lightning.data.queues import datamodule
from pmf_lightning.data.queues.datamodule import QueueData
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.objectives.base import OneDevice
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.parts import make_objective
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.training.prepare import make_data
from pmf_lightning.utils.rng import BatchRows

CONDITIONS = {
    "label": {"kind": "class", "tokens": 2},
    "alpha": {"kind": "scalar", "tokens": 1},
    "style": {"kind": "style", "tokens": 1, "codes": 3, "rows": 4},
}
LABELS, G, P, N = 4, 3, 5, 2


def law(**changes) -> Drifting:
    numbers = {
        "samples_per_label": G,
        "noise_scale": 0.5,
        "alpha_max": 4.0,
        "alpha_power": 3.0,
        "unguided_fraction": 0.25,
    }
    kernel = {"temperatures": [0.2, 0.05], "attraction": 1.0, "repulsion": 1.0}
    kernel |= {"normalisation": "both", "affinity_floor": 1e-3}
    return Drifting(**{**numbers, **kernel, "style_codes": 3, "style_values": 4, **changes})


def network():
    return tiny_network(conditions=CONDITIONS, heads={"u": 1})


def batch(labels=LABELS):
    x, negatives = normal("x", shape=(labels, P, *SHAPE)), normal("negatives", shape=(labels, N, *SHAPE))
    return QueueBatch(x, torch.arange(labels) % CLASSES, negatives)


def features(images):
    """Two features: the pixels as one vector, and every place of a map of means."""
    return {"pixels": images.flatten(1)[:, None], "places": images.unflatten(3, (2, 4)).mean(4).flatten(2).mT}


def test_loss_is_the_sum_over_features_of_the_mean_over_problems():
    net, objective, given = network(), law(), batch()
    draws = objective.draw(given, 0, 0)
    losses = objective(net, given, draws, features, keep_fields=True)
    total, norms = 0, []
    for name in ("pixels", "places"):
        problems, weights = {"gen": [], "pos": [], "neg": []}, []
        for row in range(LABELS):
            conditions = {
                "label": given.y[row].expand(G),
                "alpha": draws.alpha[row].expand(G),
                "style": draws.style[row],
            }
            made = features(net(draws.noise[row], conditions)["u"])[name]
            pos, neg = features(given.x[row])[name], features(given.negatives[row])[name]
            for place in range(made.shape[1]):  # every location is a problem of its own
                for key, points in (("gen", made), ("pos", pos), ("neg", neg)):
                    problems[key].append(points[:, place])
                weights.append(((draws.alpha[row] - 1) * (G - 1) / N).expand(N))
        stacked = {key: torch.stack(points) for key, points in problems.items()}
        options = {"temperatures": (0.2, 0.05), "affinity_floor": 1e-3}
        loss, info = drift_loss(**stacked, weight_neg=torch.stack(weights), **options)
        total = total + loss.mean()
        norms.append(info["force_norm"])
    assert relative(losses.total, total) < 1e-9
    assert relative(losses.scalars["force_norm_0.05"], torch.stack(norms)[:, 1].mean()) < 1e-9
    wanted = torch.autograd.grad(total, list(net.parameters()))
    found = torch.autograd.grad(losses.total, list(net.parameters()))
    assert all(relative(a, b) < 1e-7 for a, b in zip(found, wanted, strict=True) if b.norm() > 1e-9)
    assert losses.fields["x"].shape == (LABELS * G, *SHAPE)


def test_guidance_weighs_negatives_by_alpha():
    """With alpha = 1 they have no weight: neither in the mean distance, nor in the field but for its softmax."""
    net, objective, given = network(), law(), batch()
    draws = objective.draw(given, 0, 0)
    other = replace(given, negatives=given.negatives + 3)

    def scale(batch, alpha):
        return objective(net, batch, replace(draws, alpha=torch.full((LABELS,), alpha).double()), features).scalars[
            "scale"
        ]

    assert relative(scale(other, 1.0), scale(given, 1.0)) < 1e-12
    assert scale(other, 2.0) > 1.01 * scale(given, 2.0)
    assert scale(other, 4.0) > scale(other, 2.0)


def test_draws_follow_their_laws():
    objective = law(samples_per_label=2)
    blank = QueueBatch(
        torch.zeros(4000, 1, 1, 1, 1), torch.zeros(4000, dtype=torch.long), torch.zeros(4000, 0, 1, 1, 1)
    )
    draws = objective.draw(blank, 0, 0)
    ones = draws.alpha == 1
    assert abs(ones.double().mean() - 0.25) < 0.03
    alpha = draws.alpha[~ones].double()
    assert alpha.min() > 1
    assert alpha.max() < 4
    u = torch.linspace(0, 1, 9).double()[1:-1]  # density alpha^-3 on [1, 4]: its quantiles
    assert torch.allclose(alpha.quantile(u), (1 - u * (1 - 4.0**-2)) ** -0.5, rtol=0.06)
    assert abs(draws.noise.std() - 0.5) < 0.02
    assert draws.style.shape == (4000, 2, 3)
    assert np.allclose(torch.bincount(draws.style.flatten()) / draws.style.numel(), 0.25, atol=0.02)


def test_draws_do_not_depend_on_how_the_labels_are_dealt():
    objective = law()
    whole = objective.draw(batch(), 3, 5)
    for index in range(2):
        part = objective.draw(batch(2), 3, 5, BatchRows(index, 2))
        for name in ("alpha", "noise", "style"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[index::2])


def test_two_processes_are_one():
    """Each takes every second label; the batch means are joined as devices do it, the gradients averaged."""
    net, objective, given = network(), law(), batch()
    whole = objective(net, given, objective.draw(given, 0, 0), features)
    wanted = torch.autograd.grad(whole.total, list(net.parameters()))
    parts = [QueueBatch(given.x[i::2], given.y[i::2], given.negatives[i::2]) for i in range(2)]
    draws = [objective.draw(part, 0, 0, BatchRows(i, 2)) for i, part in enumerate(parts)]
    # The means follow one another (the second depends on the first), so the joint pass runs in lock step.
    found = lock_step(net, objective, parts, draws)
    assert relative(sum(loss for loss, _ in found) / 2, whole.total) < 1e-9
    for a, b, c in zip(*(grads for _, grads in found), wanted, strict=True):
        assert c.norm() < 1e-9 or relative((a + b) / 2, c) < 1e-7


def lock_step(net, objective, parts, draws):
    """Run both processes as threads that wait for each other in every mean."""
    barrier, box, results = threading.Barrier(2, timeout=600), [None, None], [None, None]

    def run(i):
        class Both(OneDevice):
            def mean(self, sums, counts):
                box[i] = (sums, counts)
                barrier.wait()
                total = box[0][0] + box[1][0], box[0][1] + box[1][1]
                barrier.wait()
                return total[0] / total[1]

        losses = objective(net, parts[i], draws[i], features, devices=Both())
        results[i] = losses.total, torch.autograd.grad(losses.total, list(net.parameters()))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_sampling_is_one_evaluation():
    net, objective = network(), law()
    noise, labels = normal("z", shape=(3, *SHAPE)), torch.tensor([0, 1, 4])
    conditions = objective.sampling_conditions(7, 0, 3)
    images = generate(net, noise, labels, omega=2.0, objective=objective, conditions=conditions)
    with torch.no_grad():
        raw = net(noise, {"label": labels, "alpha": torch.full((3,), 2.0).double(), **conditions})["u"]
    assert torch.equal(images, raw)
    assert network_evaluations(objective, 1, 2.0) == 1
    assert torch.equal(objective.sampling_conditions(7, 1, 2)["style"], conditions["style"][1:])
    with pytest.raises(ValueError, match="steps=2: this model makes an image in one step"):
        generate(net, noise, labels, 2, objective=objective, conditions=conditions)
    with pytest.raises(ValueError, match=r"omega=0\.5"):
        generate(net, noise, labels, omega=0.5, objective=objective, conditions=conditions)
    with pytest.raises(ValueError, match="style_codes=3: give conditions"):
        generate(net, noise, labels, objective=objective)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_per_label": 1}, "samples_per_label=1"),
        ({"alpha_max": 0.5}, "alpha_max=0.5"),
        ({"unguided_fraction": 2}, "unguided_fraction=2"),
        ({"repulsion": -1.0}, "repulsion=-1.0: neither is below 0"),
        ({"style_codes": 2, "style_values": 0}, "style_values=0"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        law(**change)


# The stream of data


class Few(DataSourceBase):
    """60 images of 1 x 4 x 4 pixels, four classes; every image is its own index."""

    name, resolution, channels, classes = "few", 4, 1, 4

    def check(self):
        pass

    def train(self):
        index = torch.arange(60, dtype=torch.uint8)
        return ArrayDataset(index[:, None, None, None].expand(60, 1, 4, 4).clone(), torch.arange(60) % 4)

    held_out = train

    def fingerprint(self):
        return "0"


class At:
    """What the stream asks of a trainer."""

    def __init__(self, step=0, rank=0, world=1):
        self.global_step, self.global_rank, self.world_size, self.num_nodes = step, rank, world, 1


SETTINGS = {
    "labels": 4,
    "positives": 3,
    "negatives": 2,
    "push_per_step": 6,
    "per_class": 5,
    "global_size": 9,
    "folder": None,
}


def stream(trainer, state=None, **changes):
    data = QueueData(Few(), 0, QueueSettings(**{**SETTINGS, **changes}), num_workers=0)
    data.trainer = trainer
    if state is not None:
        data.load_state_dict(state)
    return data, iter(data.train_dataloader())


def test_positives_have_the_class_of_their_label():
    _, steps = stream(At())
    for _, (positives, labels, negatives) in zip(range(12), steps, strict=False):
        assert positives.shape == (4, 3, 1, 4, 4)
        assert negatives.shape == (4, 2, 1, 4, 4)
        assert torch.equal(positives[:, :, 0, 0, 0].long() % 4, labels[:, None].expand(-1, 3))


def test_a_resumed_stream_goes_on_identically():
    data, steps = stream(At())
    seen = [next(steps) for _ in range(9)]
    data.trainer.global_step = 6  # a checkpoint of step 6, while the stream is two steps ahead
    state = data.state_dict()
    _, again = stream(At(step=6), state)
    for step in (6, 7, 8):
        assert all(torch.equal(a, b) for a, b in zip(next(again), seen[step], strict=True))


def test_devices_take_their_labels_of_the_same_step():
    _, whole = stream(At())
    halves = [stream(At(rank=rank, world=2))[1] for rank in range(2)]
    for _ in range(5):
        parts, all_of_it = [next(half) for half in halves], next(whole)
        for rank in range(2):
            assert all(torch.equal(part, one[rank::2]) for part, one in zip(parts[rank], all_of_it, strict=True))


def data_of(overrides):
    cfg = compose(["model=drifting_tiny", *overrides])
    return make_data(cfg, Few(), make_objective(cfg))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["micro_batch=16"], "micro_batch=16: the loss of drifting_tiny has means over the complete batch"),
        (["batch=100"], "batch=100: it counts images, 16 for each label; set a multiple"),
        (["data=digits"], "10 labels per step .* of 4 classes in data few: set batch to 4 x the images per label"),
        (["queues.push_per_step=4"], "queues.push_per_step=4: the 10 labels of a step"),
        (["queues.positives=0"], "queues.positives=0"),
        (["queues.negatives=-1"], "queues.negatives=-1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        data_of(overrides)


def test_labels_divide_over_the_devices():
    data = data_of(["batch=64"])
    assert data.accumulation(2) == 1
    with pytest.raises(UserError, match=r"4 labels .* do not divide over 3 devices"):
        data.accumulation(3)


def test_queues_too_large_are_refused_before_the_run():
    data = data_of(["batch=64", "queues.per_class=1000000000000"])
    with pytest.raises(UserError, match=r"4 classes x 1000000000000 .* memory has .* free"):
        data.check_room()


def test_styles_are_tokens_of_the_shared_backbone():
    cfg = compose(["model=drifting_tiny", "objective.style_codes=5", "conditions.style.tokens=2", *BACKBONE])
    network = build(cfg, empty=True).network
    assert network.conditions["style"].table.weight.shape == (5 * 64, 32)
    assert network.prefix == 2 + 1 + 2
    assert "style" not in build(compose(["model=drifting_tiny", *BACKBONE]), empty=True).network.conditions


def test_what_a_step_queues_is_read_in_parts(monkeypatch):
    """Parts of any size give the same steps: the same order, labels and images in the queues."""

    def steps(part):
        monkeypatch.setattr(datamodule, "PART", part)
        data, made = stream(At())
        found = [next(made) for _ in range(4)]
        data.trainer.global_step = 99  # beyond: the state is what the queues hold now
        return found, data.state_dict()["queues"]

    (whole, held), *others = (steps(part) for part in (SETTINGS["push_per_step"], 2, SETTINGS["push_per_step"] - 1))
    for other, there in others:
        assert all(torch.equal(a, b) for x, y in zip(whole, other, strict=True) for a, b in zip(x, y, strict=True))
        for name, rings in held.items():
            assert all(torch.equal(rings[key], there[name][key]) for key in rings)
