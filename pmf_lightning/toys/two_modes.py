"""Data in the plane: half of the points around one centre, half around another."""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning import draws

Points = Float[Tensor, "n 2"]


class TwoModes:
    """A mixture of two round Gaussians of width ``spread`` around ``centres``, equally likely."""

    def __init__(self, centres, spread):
        self.centres = torch.tensor([list(map(float, centre)) for centre in centres])
        self.spread = float(spread)

    def points(self, seed: int, name: str, step: int, count: int) -> Points:
        """Draw ``count`` points, float32."""
        mode = (draws.uniform(seed, name, "mode", step, count=count) < 0.5).long()
        normal = draws.normal(seed, name, "normal", step, count=2 * count).view(count, 2)
        return (self.centres.double()[mode] + self.spread * normal).float()


def shares(points: Points, modes: TwoModes, near: float | int) -> list[float]:
    """Return the share of ``points`` that lie within ``near`` spreads of each centre."""
    distance = (points[:, None] - modes.centres).norm(dim=2)
    return (distance < near * modes.spread).double().mean(0).tolist()
