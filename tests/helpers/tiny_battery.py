"""A battery for tests: pixels and fixed random projections of them."""

from torch.nn import functional

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.utils import rng


class Small(Encoder):
    """Pixels averaged to ``side`` x ``side``; with ``width``, their fixed random projection through tanh."""

    def __init__(self, side=2, width=None, seed=0):
        super().__init__()
        self.side_out, self.width = side, width
        self.calls, self.features = 0, width or side * side
        if width:
            mix = rng.normal(seed, "tests", "small", count=side * side * width).view(side * side, width)
            self.register_buffer("mix", mix.float())

    def fingerprint(self):
        return f"small {self.side_out} {self.features}"

    def encode(self, images):
        self.calls += 1
        small = functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), self.side_out).flatten(1)
        return {"features": (3 * small @ self.mix).tanh() if self.width else small}


def tiny_battery():
    return Battery({"pixels": Small(2), "mixed": Small(4, 6), "other": Small(4, 5, seed=1)})


def real_of(battery, images):
    """Real features of uint8 images."""
    found = battery.encode(images.float() / 127.5 - 1)
    return {name: RealFeatures(name, len(rows), rows) for name, rows in found.items()}
