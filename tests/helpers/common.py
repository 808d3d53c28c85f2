"""What several test files build: a tiny network without dead weights, an objective, a batch, stand-in networks."""

import math
from types import SimpleNamespace

import pytest
import torch

from pmf_lightning import Batch, MeanFlowDraws, PixelMeanFlow
from pmf_lightning.models.vit import ViT, init_weights
from pmf_lightning.utils import rng

CONDITIONS = {
    "label": {"kind": "class", "tokens": 2},
    "omega": {"kind": "scalar", "tokens": 1},
    "t_min": {"kind": "scalar", "tokens": 1},
    "t_max": {"kind": "scalar", "tokens": 1},
    "h": {"kind": "scalar", "tokens": 2},
}
CLASSES, SHAPE = 5, (3, 8, 8)


def relative(value, reference) -> float:
    """Relative L2 distance, in float64."""
    value, reference = (torch.as_tensor(a).detach().double() for a in (value, reference))
    assert value.shape == reference.shape
    return ((value - reference).norm() / reference.norm()).item()


def normal(*names, shape, dtype=torch.float64):
    return rng.normal("tests", *names, count=math.prod(shape)).reshape(shape).to(dtype)


def uniform(*names, count, low=0.0, high=1.0, dtype=torch.float64):
    return (low + (high - low) * rng.uniform("tests", *names, count=count)).to(dtype)


def empty_network(**changes) -> ViT:
    sizes = {"resolution": 8, "channels": 3, "patch": 4, "width": 16, "num_heads": 2, "mlp_dim": 24}
    parts = {"depth": 1, "heads": {"u": 1, "v": 1}, "conditions": CONDITIONS, "classes": CLASSES, "bottleneck": 6}
    return ViT(**{**sizes, **parts, "block_gain": 0.8, "rope_theta": 100.0, "attention": "plain", **changes})


def tiny_network(dtype=torch.float64, **changes) -> ViT:
    """A network of random weights, none of them zero: gates and final layers let everything through."""
    network = empty_network(**changes)
    init_weights(network, lambda name: rng.generator("tests", name))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("gate.weight", "norm.weight", "bias")) or ".out." in name:
                weight.copy_(weight + 0.3 * normal(name, shape=tuple(weight.shape)))
    return network.to(dtype)


def objective(**changes) -> PixelMeanFlow:
    numbers = {
        **{"prediction": "x", "noise_scale": 1.0, "P_mean": 0.8, "P_std": 0.8, "uniform_fraction": 0.0},
        **{"flow_matching_fraction": 0.5, "omega_beta": 1.0, "label_dropout": 0.1, "t_clip": 0.05},
        **{"omega_min": 1.0, "omega_max": 8.0, "jvp_tangent": "network", "sample_interval": True},
        **{"weight_power": 1.0, "weight_eps": 0.01, "jvp": "two_pass"},
        **{"v_target": "clipped", "v_source": "head", "time_order": "tie_then_sort", "r_law": "any"},
        **{"preconditioner": None, "perceptual": {}, "t_thr": 0.8, "crop": None},
    }
    return PixelMeanFlow(**{**numbers, **changes})


def blank(count, shape=(1, 1, 1), dtype=torch.float32) -> Batch:
    """A batch for draws alone."""
    return Batch(torch.zeros(count, *shape, dtype=dtype), torch.zeros(count, dtype=torch.long))


# One row of each kind: (t, r, omega, t_min, t_max, drop).
ROWS = {
    "tied, dropped": (0.4, 0.4, 2.0, 0.0, 1.0, True),
    "moving, inside the interval": (0.6, 0.2, 3.0, 0.1, 0.9, False),
    "tied, guided": (0.7, 0.7, 4.0, 0.0, 1.0, False),
    "moving, above the interval": (0.9, 0.5, 5.0, 0.2, 0.8, False),
    "moving, dropped": (0.5, 0.1, 2.5, 0.1, 0.9, True),
    "tied, not guided": (0.3, 0.3, 1.0, 0.0, 1.0, False),
    "moving, not guided": (0.8, 0.0, 1.0, 0.0, 1.0, False),
    "moving, at the interval's edge": (0.75, 0.3, 2.2, 0.1, 0.75, False),
}


def rows(*names, dtype=torch.float64) -> tuple[Batch, MeanFlowDraws]:
    """A batch of the rows of ROWS called ``names`` (all by default), images and noise in a fixed order."""
    places = [list(ROWS).index(name) for name in names or ROWS]
    t, r, omega, t_min, t_max, drop = zip(*(ROWS[name] for name in names or ROWS), strict=True)
    x = normal("x", shape=(len(ROWS), *SHAPE)).clamp(-1, 1).to(dtype)[places]
    noise = normal("noise", shape=(len(ROWS), *SHAPE), dtype=dtype)[places]
    scalars = (torch.tensor(values, dtype=dtype) for values in (t, r, omega, t_min, t_max))
    t, r, omega, t_min, t_max = scalars
    batch = Batch(x, torch.tensor(places) % CLASSES)
    return batch, MeanFlowDraws(t, r, noise, omega, t_min, t_max, torch.tensor(drop))


class Oracle(torch.nn.Module):
    """Knows every noisy image ``z`` and answers what belongs to it, for any condition and both heads."""

    def __init__(self, z, answers, classes=CLASSES):
        super().__init__()
        self.z, self.answers, self.classes = z, answers, classes

    def forward(self, image, conditions, heads=None, attention=None):
        row = (image.detach()[:, None] == self.z[None]).flatten(2).all(2).long().argmax(1)
        return {head: self.answers[row] for head in heads}


class Spy:
    """Passes calls on to a network and keeps what they asked for."""

    def __init__(self, network):
        self.network, self.classes, self.calls = network, network.classes, []

    def __call__(self, image, conditions, heads=None, attention=None):
        self.calls.append(
            {
                "rows": len(image),
                "heads": tuple(heads),
                "attention": attention,
                "graph": torch.is_grad_enabled(),
                **{name: conditions[name].clone() for name in ("label", "omega", "t_min", "t_max")},
            }
        )
        return self.network(image, conditions, heads=heads, attention=attention)


class Squares:
    """A distance: the mean of squared differences of pairs of ``side`` pixels."""

    def __init__(self, side):
        self.side, self.pairs = side, []

    def __call__(self, generated, real):
        assert generated.shape == real.shape
        assert generated.shape[2:] == (self.side, self.side)
        self.pairs.append((generated, real))
        return (generated - real).square().flatten(1).mean(1)


def given_to_the_objective(module, step, micro_batches, monkeypatch):
    """What the objective is given of a micro-batch, in a module that believes it trains."""
    module.trainer = SimpleNamespace(accumulate_grad_batches=micro_batches, world_size=1, global_rank=0)
    monkeypatch.setattr(type(module), "global_step", step)
    seen = []

    class Stop(Exception):
        pass

    def draw(self, batch, *_):
        seen.append(batch)
        raise Stop

    monkeypatch.setattr(type(module.objective), "draw", draw)

    def give(parts, index):
        with pytest.raises(Stop):
            module.training_step(parts, index)
        return seen[-1]

    return give
