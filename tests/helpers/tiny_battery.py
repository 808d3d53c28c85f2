"""A battery for tests: pixels and fixed random projections, in the form of encoders.battery.Battery."""

from types import SimpleNamespace

import torch
from torch.nn import functional

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.utils import rng


class Small(Encoder):
    """Pixels averaged to ``side`` x ``side``; with ``width``, their fixed random projection through tanh."""

    def __init__(self, side=2, width=None, seed=0):
        super().__init__()
        self.side_out, self.width = side, width
        self.calls = 0
        if width:
            mix = rng.normal(seed, "tests", "small", count=side * side * width).view(side * side, width)
            self.register_buffer("mix", mix.float())

    def encode(self, images):
        self.calls += 1
        small = functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), self.side_out).flatten(1)
        return {"features": (3 * small @ self.mix).tanh() if self.width else small}


class TinyBattery(Encoder):
    """What the judge needs of a battery."""

    def __init__(self, **members):
        super().__init__()
        self.members = torch.nn.ModuleDict(members)

    def encode(self, images):
        return {name: member.encode(images)["features"] for name, member in self.members.items()}


def tiny_battery():
    return TinyBattery(pixels=Small(2), mixed=Small(4, 6), other=Small(4, 5, seed=1))


def real_of(battery, images):
    """What the judge needs of RealFeatures, of uint8 images."""
    found = battery.encode(images.float() / 127.5 - 1)
    return {
        name: SimpleNamespace(rows=rows, moments=lambda rows=rows: (rows.double().mean(0), torch.cov(rows.double().T)))
        for name, rows in found.items()
    }
