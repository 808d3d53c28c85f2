"""The sampler: one step, many steps by hand, an oracle, noise that belongs to its image, and refusals."""

import itertools

import matching
import pytest
import torch
from common import CLASSES, SHAPE, Oracle, normal, objective, relative, tiny_network

from pmf_lightning import generate, image_noise, sample_images
from pmf_lightning.pipeline.module import GenerativeModule

COUNT = 4
NOISE, LABELS = normal("start", shape=(COUNT, *SHAPE)), torch.tensor([0, 3, CLASSES, 1])
GUIDANCE = 3.0, 0.2, 0.7


def conditions(h, omega, t_min, t_max):
    numbers = {"omega": 1 - 1 / omega, "t_min": t_min, "t_max": t_max, "h": h}
    full = {name: torch.full((COUNT,), value, dtype=torch.float64) for name, value in numbers.items()}
    return {"label": LABELS, **full}


def test_one_step_is_the_networks_raw_image():
    network = tiny_network()
    images = generate(network, NOISE, LABELS, 1, *GUIDANCE, objective=objective())
    with torch.no_grad():
        raw = network(NOISE, conditions(1.0, *GUIDANCE))["u"]
    assert relative(images, raw) < 1e-15
    assert not images.requires_grad


@pytest.mark.parametrize("prediction", ["x", "u"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_written_out(prediction, steps):
    network = tiny_network()
    z = NOISE
    with torch.no_grad():
        for k in range(steps):
            t, r = 1 - k / steps, 1 - (k + 1) / steps
            raw = network(z, conditions(t - r, *GUIDANCE))["u"]
            u = (z - raw) / max(t, 0.05) if prediction == "x" else raw
            z = z - u / steps
    images = generate(network, NOISE, LABELS, steps, *GUIDANCE, objective=objective(prediction=prediction))
    assert relative(images, z) < 1e-12


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_two_steps_of_a_solver_written_out(sampler):
    """The velocity is u over an interval of no length, with the same guidance in every evaluation."""
    network, z = tiny_network(), NOISE

    def velocity(z, t):
        with torch.no_grad():
            return (z - network(z, conditions(0.0, *GUIDANCE))["u"]) / t

    v = velocity(z, 1.0)
    if sampler == "heun":
        v = (v + velocity(z - v / 2, 0.5)) / 2
    z = z - v / 2
    z = z - velocity(z, 0.5) / 2
    images = generate(network, NOISE, LABELS, 2, *GUIDANCE, sampler=sampler, objective=objective())
    assert relative(images, z) < 1e-12


@pytest.mark.parametrize("prediction", ["x", "u"])
def test_oracle_is_reproduced(prediction):
    x = normal("clean", shape=(COUNT, *SHAPE))
    oracle = Oracle(NOISE, x if prediction == "x" else NOISE - x)
    images = generate(oracle, NOISE, LABELS, 1, objective=objective(prediction=prediction))
    assert (images - x).abs().max() < 1e-15


def test_a_perfect_flow_is_followed_exactly_in_any_number_of_steps():
    """A network that always answers the same image x has straight paths: every number of steps ends in x."""
    x = normal("clean", shape=(COUNT, *SHAPE))

    class Straight(torch.nn.Module):
        classes = CLASSES

        def forward(self, image, conditions, heads=None, attention=None):
            return dict.fromkeys(heads, x)

    for steps in (1, 3, 10):
        assert relative(generate(Straight(), NOISE, LABELS, steps, objective=objective()), x) < 1e-14


def test_module_and_bare_network_are_the_same():
    network, law = tiny_network(), objective()
    module = torch.nn.Module()
    module.network, module.objective = network, law
    one = generate(module, NOISE, LABELS, 2, *GUIDANCE)
    assert torch.equal(one, generate(network, NOISE, LABELS, 2, *GUIDANCE, objective=law))


def test_defaults_are_one_unguided_step():
    network = tiny_network()
    default = generate(network, NOISE, LABELS, objective=objective())
    assert torch.equal(default, generate(network, NOISE, LABELS, 1, 1.0, 0.0, 1.0, objective=objective()))
    for other in ((2, 1.0, 0.0, 1.0), (1, 2.0, 0.0, 1.0), (1, 1.0, 0.3, 1.0), (1, 1.0, 0.0, 0.6)):
        assert relative(generate(network, NOISE, LABELS, *other, objective=objective()), default) > 1e-6


def test_whole_numbers_will_do():
    law, network = objective(), tiny_network()
    whole = generate(network, NOISE, LABELS, 1, 3, 0, 1, objective=law)
    assert torch.equal(whole, generate(network, NOISE, LABELS, 1, 3.0, 0.0, 1.0, objective=law))


def test_only_the_u_head_is_evaluated():
    spy = torch.nn.Module()
    network = tiny_network()
    asked = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append((kwargs["heads"], torch.is_grad_enabled())), with_kwargs=True
    )
    spy.network, spy.objective = network, objective()
    generate(spy, NOISE, LABELS, 3)
    assert asked == [(("u",), False)] * 3


def test_noise_belongs_to_its_image():
    whole = image_noise(5, 0, 8, SHAPE)
    assert whole.shape == (8, *SHAPE)
    for batch_size in (1, 3, 8):
        parts = [image_noise(5, first, min(batch_size, 8 - first), SHAPE) for first in range(0, 8, batch_size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(image_noise(5, 1000, 1, SHAPE), image_noise(5, 998, 3, SHAPE)[2:])
    assert not torch.equal(whole, image_noise(6, 0, 8, SHAPE))
    assert not torch.equal(whole[0], whole[1])
    assert abs(image_noise(5, 0, 64, SHAPE).std() - 1) < 0.03


@pytest.mark.parametrize("kind", matching.GENERATORS)
def test_a_sampled_image_belongs_to_its_number(kind):
    """Its noise and its style, whatever the batch: five images of one class are five images."""
    law, labels = matching.GENERATORS[kind][0](), [3] * 5
    options = {"steps": 1, "omega": 2.0, "t_min": 0.1, "t_max": 0.8}
    config = {"compile": False, "sampling": options}
    module = GenerativeModule(matching.network(kind), law, torch.optim.AdamW, float, 0, config)
    images = sample_images(module, labels, batch_size=5)
    assert min((a - b).abs().max() for a, b in itertools.combinations(images, 2)) > 0.1
    assert relative(sample_images(module, labels, batch_size=2), images) < 1e-12
    assert relative(sample_images(module, labels[2:], first=2), images[2:]) < 1e-12
    noise, conditions = law.noise_scale * image_noise(0, 0, 5, SHAPE), law.sampling_conditions(0, 0, 5)
    assert all(len(value.unique(dim=0)) > 1 for value in conditions.values())
    raw = generate(module, noise, torch.tensor(labels), **options, conditions=conditions)
    assert raw.abs().max() > 1
    assert relative(images, raw.clamp(-1, 1)) < 1e-12


def test_an_image_does_not_depend_on_its_neighbours():
    network = tiny_network()
    whole = generate(network, NOISE, LABELS, 2, *GUIDANCE, objective=objective())
    for i in range(COUNT):
        alone = generate(network, NOISE[i : i + 1], LABELS[i : i + 1], 2, *GUIDANCE, objective=objective())
        assert relative(alone[0], whole[i]) < 1e-13


def test_images_are_not_clipped():
    images = generate(tiny_network(), 10 * NOISE, LABELS, objective=objective(prediction="u"))
    assert images.abs().max() > 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"omega": 0.99}, "omega=0.99"),
        ({"t_min": 0.7, "t_max": 0.2}, "t_min=0.7 t_max=0.2"),
        ({"t_min": -0.1}, "t_min=-0.1"),
        ({"t_max": 1.1}, "t_max=1.1"),
    ],
)
def test_refusals(asked, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_network(), NOISE, LABELS, objective=objective(), **asked)
