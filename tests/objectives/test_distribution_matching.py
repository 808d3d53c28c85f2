"""Post-training by distribution matching: one step of each generator, the loss by hand, parts, state and refusals."""

from dataclasses import replace

import pytest
import torch
from common import CLASSES, SHAPE, normal, relative
from matching import (
    BATCH,
    FRECHET,
    GATED,
    REAL,
    WIDTH,
    Linear,
    battery,
    label_batch,
    matching,
    matching_run,
    network,
    real,
)
from ranks import together

from pmf_lightning import FeatureEMA, FeatureQueue, FrechetReference, drift_loss, frechet_loss, generate, mmd_loss
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.objectives.base import check_contract
from pmf_lightning.objectives.discrepancies.choices import (
    Drift,
    Frechet,
    MMDExact,
    MMDFourier,
    MMDNystrom,
    SlicedWasserstein,
)
from pmf_lightning.objectives.discrepancies.fourier import FourierReference
from pmf_lightning.objectives.discrepancies.joint import JointLaw
from pmf_lightning.objectives.discrepancies.kernels import gram, median_bandwidth
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.objectives.discrepancies.sliced import sliced_directions
from pmf_lightning.objectives.distribution_matching import FLOOR_DRAWS
from pmf_lightning.objectives.masked_autoencoder import MaskedAutoencoder
from pmf_lightning.utils import rng
from pmf_lightning.utils.rng import BatchRows

CHOICES = {
    "queue": Frechet(**{**FRECHET, "population": "queue"}),
    "batch": Frechet(**{**FRECHET, "population": "batch", "ridge": 1e-6}),
    "mmd_nystrom": MMDNystrom(landmarks=16, scale=1.0),
    "mmd_exact": MMDExact(scale=1.0),
    "mmd_fourier": MMDFourier(frequencies=64, scale=1.0),
    "sliced": SlicedWasserstein(directions=32),
    "drift": Drift(temperatures=(0.2, 0.05)),
}


def step(law, net=None, state=None, encoders=None):
    """Losses of step 0, and the gradients of the network's weights by name."""
    net, encoders = net or network(), encoders or battery(law)
    state = law.initial_state(net, encoders, 0) if state is None else state
    given = label_batch()
    losses = law(net, given, law.draw(given, 0, 0), encoders, state=state)
    weights = dict(net.named_parameters())
    found = torch.autograd.grad(losses.total, list(weights.values()), allow_unused=True)
    return losses, {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("sampler", ["average", "heun", "one_step"])
def test_images_are_those_of_sampling_in_one_step(sampler):
    law, net = matching(sampler), network(sampler)
    check_contract(law)
    noise, y = law.noise_scale * normal("noise", shape=(6, 3, 8, 8)), torch.arange(6) % CLASSES
    conditions = law.sampling_conditions(0, 0, 6)
    images = law.images(net, noise, y, conditions)
    guidance = {"omega": 1.0 if sampler == "heun" else 2.0, "t_min": 0.1, "t_max": 0.8}
    wanted = generate(net, noise, y, 1, **guidance, objective=law.generator, conditions=conditions)
    assert torch.equal(images, wanted)
    assert torch.equal(generate(net, noise, y, 1, **guidance, objective=law, conditions=conditions), wanted)
    assert images.requires_grad
    assert law.heads == ("u",)
    assert step(law, net)[0].total.isfinite()


def test_loss_is_the_sum_of_frechet_losses_of_the_images():
    law, net = matching(weights={"b": 3.0}), network()
    encoders, given = battery(law), label_batch()
    state, draws = law.initial_state(net, encoders, 0), law.draw(given, 0, 0)
    losses, _ = step(law, net, state, encoders)
    features = encoders.encode(law.images(net, draws.noise, given.y, {}))
    total = 0
    for name, weight in {"a": 1, "b": 3}.items():
        reference = FrechetReference(*real(name).moments())
        start = {key.rpartition(".")[2]: value for key, value in state.items() if f".{name}." in key}
        population = FeatureEMA.from_state(start, FRECHET["beta"])
        loss, info = frechet_loss(features[name], population, reference)
        total = total + weight * loss
        assert relative(losses.scalars[f"fd_{name}"], info["fd"]) < 1e-12
        after = law.next_state(state, losses.observed, 0)
        moved = population.updated(features[name])
        assert relative(after[f"population.{name}.mean"], moved.state_dict()["mean"]) < 1e-12
        assert not torch.equal(after[f"population.{name}.mean"], state[f"population.{name}.mean"])
    assert relative(losses.total, total) < 1e-12
    assert after.keys() == state.keys()


def test_population_starts_from_the_generator_and_does_not_depend_on_parts():
    law, net = matching(discrepancy=CHOICES["queue"]), network()
    encoders = battery(law)
    whole = law.initial_state(net, encoders, 0)
    parts = replace(law, micro_batch=5).initial_state(net, encoders, 0)
    assert whole["population.a.features"].shape == (FRECHET["rows"], WIDTH)
    assert not torch.equal(whole["population.a.features"], law.initial_state(net, encoders, 1)["population.a.features"])
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-12)
    rows = whole["population.a.features"]
    queue = FeatureQueue.from_state({name.rpartition(".")[2]: whole[name] for name in whole if ".a." in name})
    mean, covariance = queue.statistics(rows[:2])  # they replace the two oldest, which are the same
    assert relative(mean, rows.mean(0)) < 1e-12
    assert relative(covariance, torch.cov(rows.mT)) < 1e-12


def test_population_starts_from_images_of_scaled_noise_and_of_all_classes():
    law, net, seen = matching("one_step", discrepancy=CHOICES["queue"], micro_batch=5), network("one_step"), []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    encoders = battery(law)
    state = law.initial_state(net, encoders, 0)
    noise = torch.cat([image for image, _ in seen])
    labels, styles = (torch.cat([given[name] for _, given in seen]) for name in ("label", "style"))
    images = law.images(net, noise, labels, {"style": styles})
    assert relative(state["population.a.features"], encoders.encode(images)["a"]) < 1e-12
    assert noise.std().item() == pytest.approx(law.noise_scale, rel=0.05)
    assert set(labels.tolist()) == set(range(CLASSES))
    assert len(styles.unique(dim=0)) > FRECHET["rows"] // 2


@pytest.mark.parametrize("name", CHOICES)
def test_each_discrepancy_has_a_gradient_that_parts_do_not_change(name):
    law, net = matching(discrepancy=CHOICES[name]), network()
    encoders = battery(law)
    losses, gradients = step(law, net, None, encoders)
    assert {f"{law.discrepancy.metric}_{encoder}" for encoder in "ab"} <= losses.scalars.keys()
    assert sum(gradient.norm() for gradient in gradients.values()) > 0
    for size in (1, 5):
        parts, of_parts = step(replace(law, micro_batch=size), net, None, encoders)
        assert relative(parts.total, losses.total) < 1e-10
        assert of_parts.keys() == gradients.keys()
        for weight, gradient in gradients.items():
            torch.testing.assert_close(of_parts[weight], gradient, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["mmd_nystrom", "mmd_exact", "mmd_fourier", "sliced", "drift"])
def test_the_value_of_each_discrepancy_written_out(name):
    """At half the bandwidth where there is one, and with the real rows that the draws choose."""
    law = replace(CHOICES[name], scale=0.5) if hasattr(CHOICES[name], "scale") else CHOICES[name]
    x, rows = normal("features", shape=(BATCH, WIDTH)), real("a").rows
    draws = law.draw(BATCH, 0, 3)
    chosen = rows[(draws["picks"] * len(rows)).long()] if "picks" in draws else None
    width = median_bandwidth(rows) / 2

    def mmd2(attraction):
        return gram(x, x, width).mean() - 2 * attraction + gram(rows, rows, width).mean()

    if name == "mmd_nystrom":
        reference = MMDReference.fit(rows, law.landmarks, bandwidth=width)
        wanted = mmd2((gram(x, reference.landmarks, width) @ reference.alpha).mean())
    elif name == "mmd_exact":
        wanted = mmd2(gram(x, chosen, width).mean())
    elif name == "mmd_fourier":
        reference = FourierReference.fit(rows, width, law.frequencies)
        waves = [(2 * (some @ reference.frequencies + reference.phases).cos()).mean(0) for some in (x, rows)]
        wanted = (waves[0] - waves[1]).square().sum() / (2 * law.frequencies)
    elif name == "sliced":
        directions = sliced_directions(WIDTH, law.directions, draws["key"].item())
        wanted = ((x @ directions).sort(0).values - (chosen @ directions).sort(0).values).square().mean()
    else:
        norms = [drift_loss(x[None], chosen[None], temperatures=(one,))[1]["force_norm"] for one in law.temperatures]
        wanted = sum(norms) / len(norms)
    _, info = law.loss(x, law.reference(real("a")), {}, draws)
    assert relative(info[law.metric], torch.as_tensor(wanted).reshape(info[law.metric].shape)) < 1e-9


def test_the_joint_law_sees_labels_that_images_alone_do_not_show():
    images, joint = (matching(discrepancy=CHOICES["mmd_nystrom"], joint=scale) for scale in (None, 1.0))
    rows = real("a").rows
    assert images.target(real("a"), CLASSES).law is None
    for law in (images, joint):
        target = law.target(real("a"), CLASSES)
        labelled = [rows, torch.arange(len(rows)) % CLASSES]
        swapped = [rows, (torch.arange(len(rows)) + 1) % CLASSES]
        distances = []
        for features, labels in (labelled, swapped):
            seen = features if target.law is None else target.law(features, labels)
            distances.append(mmd_loss(seen, target.reference)[1]["mmd2"].abs() + 1e-3)
        if target.law is None:
            assert distances[1] == distances[0]
        else:
            assert distances[1] > 10 * distances[0]
    assert joint.encoder_request.needs == ("rows",)
    with pytest.raises(ValueError, match="a: the reference has no labels, which the joint law needs"):
        joint.target(real("a", labels=None), CLASSES)


@pytest.mark.parametrize("joint", [None, 0.5])
def test_a_target_is_made_of_the_rows_and_its_floor_of_the_held_out_ones(joint):
    """With the joint law, both with the codes of their labels, and not of what is stored of the images alone."""
    some = real("a")
    mu, sigma = some.moments()
    stored = replace(some, mu=mu, sigma=sigma, nystrom=MMDReference.fit(some.rows, 16), nystrom_scale=1.0)
    target = matching(discrepancy=CHOICES["mmd_nystrom"], controller=GATED, joint=joint).target(stored, CLASSES)
    rows, held_out, known = some.rows, some.held_out, stored
    if joint is None:
        assert target.reference is stored.nystrom
    else:
        assert target.law.beta == pytest.approx(joint * JointLaw.fit(rows, CLASSES).beta)
        rows, held_out = (target.law(part, some.labels) for part in (rows, held_out))
        known = stored.joined(target.law)
        assert relative(target.reference.landmarks, MMDReference.fit(rows, 16).landmarks) < 1e-12
    assert relative(known.moments()[0], rows.mean(0)) < 1e-12
    assert relative(known.moments()[1], torch.cov(rows.mT)) < 1e-12
    sets = [rng.permutation("floor", draw, count=REAL)[:BATCH] for draw in range(FLOOR_DRAWS)]
    floors = [mmd_loss(held_out[chosen], target.reference)[1]["mmd2"] for chosen in sets]
    assert target.floor == pytest.approx(torch.stack(floors).mean().item(), rel=1e-12)


def test_the_controller_gates_encoders_at_their_floor():
    law = matching(discrepancy=CHOICES["mmd_nystrom"], controller={**GATED, "total": 10})
    encoders, net = battery(law), network()
    state = law.initial_state(net, encoders, 0)
    losses, _ = step(law, net, state, encoders)
    assert relative(losses.total, losses.scalars["weight_a"] + losses.scalars["weight_b"]) < 1e-3  # normalised losses
    after = law.next_state(state, losses.observed, 0)
    assert after["controller.updates"] == 1
    assert after["controller.weights"].sum() == pytest.approx(10)
    # A generator at the floor in one encoder: the other gets all the weight.
    easy = replace(encoders.targets["a"], floor=1e3)
    encoders.targets = {"a": easy, "b": encoders.targets["b"]}
    losses, _ = step(law, net, state, encoders)
    weights = law.next_state(state, losses.observed, 0)["controller.weights"]
    assert weights.tolist() == pytest.approx([0, 10])
    floor = law.target(real("a"), CLASSES).floor
    bias = (1 - encoders.targets["b"].reference.k_rr) / BATCH
    assert 0 < floor < 10 * bias


def test_pixels_are_clipped_and_latents_are_not():
    class Halved:
        """A decoder whose pixels are half the latents."""

        def decode_with_gradient(self, latents):
            return latents / 2

    wide = 3 * normal("wide", shape=(4, *SHAPE))
    pixels, latents = (Battery({"a": Linear("a")}, decoder) for decoder in (None, Halved()))
    assert torch.equal(latents.encode(2 * wide, clamp=True)["a"], pixels.encode(wide.clamp(-1, 1))["a"])
    law, net = matching(clamp=True), network()
    encoders = battery(law)
    seen = law._features(net, encoders, wide, torch.arange(4) % CLASSES, {})
    images = law.images(net, wide, torch.arange(4) % CLASSES, {})
    assert images.abs().max() > 1
    assert torch.equal(seen["a"], encoders.encode(images.clamp(-1, 1))["a"])


def test_draws_are_keyed_by_row():
    law = matching("one_step")
    whole = law.draw(label_batch(), 0, 3)
    for index in range(2):
        part = law.draw(label_batch(BATCH // 2), 0, 3, BatchRows(index, 2))
        assert torch.equal(part.noise, whole.noise[index::2])
        assert torch.equal(part.conditions["style"], whole.conditions["style"][index::2])
    law = matching(discrepancy=CHOICES["sliced"])
    assert torch.equal(
        law.draw(label_batch(BATCH // 2), 0, 3, BatchRows(1, 2)).discrepancy["picks"],
        law.draw(label_batch(), 0, 3).discrepancy["picks"],
    )


REFUSED = {
    "encoders=\\[\\]: name at least one encoder": {"encoders": ()},
    r"encoders=\[a,b,a\]: name each once": {"encoders": ("a", "b", "a")},
    r"weights\.c: it is not one of encoders=\[a,b\]": {"weights": {"c": 1}},
    "weights and controller": {"weights": {"a": 1}, "controller": GATED},
    "temperature=0": {"controller": {**GATED, "temperature": 0}, "discrepancy": CHOICES["mmd_nystrom"]},
    "controller: its floors are distances of batch=12 images, and the discrepancy compares 24 with": {
        "controller": GATED
    },
    "batch=1: so few images have no covariance": {"batch": 1, "discrepancy": CHOICES["batch"]},
    "discrepancy.rows=24: the population is smaller than batch=25": {"batch": 25},
    "omega=0.5: the guidance scale is 1": {"omega": 0.5},
    "t_min=0.8 t_max=0.2: the interval": {"t_min": 0.8, "t_max": 0.2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(ValueError, match=message):
        matching(**REFUSED[message])


def test_a_ridge_is_of_the_batch_alone():
    for change in ({"ridge": 0.1}, {"ridge": -0.1, "population": "batch"}):
        with pytest.raises(ValueError, match=f"ridge={change['ridge']}: it is 0 or more, and 0 for population="):
            Frechet(**{**FRECHET, **change})
    some = real("a")
    ridged = replace(CHOICES["batch"], ridge=0.1)
    _, info = ridged.loss(some.rows, ridged.reference(some), {}, {})
    assert abs(info["fd"]) < 1e-9  # both covariances have it


def test_a_stored_nystrom_reference_has_the_settings_of_the_loss():
    law, some = CHOICES["mmd_nystrom"], real("a")
    stored = replace(some, nystrom=MMDReference.fit(some.rows, 16), nystrom_scale=1.0)
    assert law.reference(stored) is stored.nystrom
    assert law.reference(replace(stored, nystrom_scale=None)) is stored.nystrom
    with pytest.raises(
        ValueError, match=r"a: landmarks=8, and the stored .* 16; set posttrain.discrepancy.landmarks=16"
    ):
        replace(law, landmarks=8).reference(stored)
    with pytest.raises(
        ValueError, match=r"a: scale=0.5, and the stored .* with 1.0; set posttrain.discrepancy.scale=1"
    ):
        replace(law, scale=0.5).reference(stored)


def test_refusals_of_references_and_generators():
    with pytest.raises(ValueError, match="MaskedAutoencoder makes no images"):
        matching(generator=object.__new__(MaskedAutoencoder))
    law = matching(discrepancy=CHOICES["mmd_exact"])
    mu, sigma = real("a").moments()
    with pytest.raises(ValueError, match="a: the reference has no rows of features"):
        law.target(real("a", rows=60, labels=None) and replace(real("a"), rows=None, mu=mu, sigma=sigma), CLASSES)
    gated = matching(discrepancy=CHOICES["mmd_nystrom"], controller=GATED, batch=100)
    with pytest.raises(ValueError, match="floor on batch=100 held-out images, and there are 60"):
        gated.target(real("a"), CLASSES)


def test_counted_objective_needs_no_encoder():
    law, encoders = matching().counted()
    losses, gradients = step(law, network(), {}, encoders)
    assert losses.total > 0
    assert gradients


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes", [{}, {"discrepancy": CHOICES["mmd_nystrom"], "controller": GATED}], ids=["fd", "gated"]
)
def test_resumed_run_is_the_same_bit_for_bit(changes, tmp_path):
    whole = matching_run(3, str(tmp_path), **changes)
    matching_run(1, str(tmp_path), **changes)
    resumed = matching_run(3, str(tmp_path), ckpt=str(tmp_path / "1.ckpt"), **changes)
    assert equal(resumed[2], whole[2])
    assert equal(resumed[3], whole[3])


def run_on(devices, folder):
    return matching_run(2, folder, devices=devices)


@pytest.mark.slow
def test_one_two_and_three_processes_have_the_same_losses_and_gradients(tmp_path):
    gradients, losses, _, state = matching_run(2, str(tmp_path))
    for devices in (2, 3):
        for theirs, other_losses, _, other_state in together(devices, run_on, devices, str(tmp_path)):
            torch.testing.assert_close(torch.stack(other_losses), torch.stack(losses), rtol=1e-6, atol=1e-6)
            scale = max(gradient.abs().max() for gradient in gradients[0].values())
            for name, gradient in gradients[0].items():
                torch.testing.assert_close(theirs[0][name], gradient, rtol=1e-5, atol=1e-6 * scale.item(), msg=name)
            for name, value in state.items():
                torch.testing.assert_close(other_state[name], value, rtol=1e-4, atol=1e-6, msg=name)
