"""Walks between noises and between classes by spherical interpolation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.playground.drawing import Drawn, Noise, Settings, draw, unit_noise
from pmf_lightning.utils.precision import Number

Shares = Float[Tensor, " n"]  # of the way, 0 to 1


def slerp(a: Float[Tensor, "n *rest"], b: Float[Tensor, "n *rest"], share: Shares) -> Float[Tensor, "n *rest"]:
    """Interpolate on the sphere, row by row: sin((1-s) w) / sin(w) a + sin(s w) / sin(w) b, w the angle between.

    (Shoemake 1985.) Gaussian noise lies near a sphere, and a straight line between two noises leaves it. Rows that are
    nearly parallel, or opposite, are interpolated in a straight line.
    """
    flat_a, flat_b, s = a.flatten(1).double(), b.flatten(1).double(), share.double()[:, None].to(a.device)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)[:, None]
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, 1, sine)
    left = torch.where(straight, 1 - s, ((1 - s) * angle).sin() / safe)
    right = torch.where(straight, s, (s * angle).sin() / safe)
    return (left * flat_a + right * flat_b).to(a.dtype).view_as(a)


def between_corners(corners: Float[Tensor, "k c h w"], across: Shares, down: Shares) -> Noise:
    """Return the noise at each place between two corners (``down`` is not used) or four (rows of two), [n,C,H,W]."""

    def at(number: int) -> Noise:
        return corners[number].expand(len(across), *corners.shape[1:])

    top = slerp(at(0), at(1), across)
    return top if len(corners) == 2 else slerp(top, slerp(at(2), at(3), across), down)


@contextmanager
def mixed_class(network: nn.Module, first: int, second: int, share: Shares) -> Iterator[None]:
    """While it lasts, row i of a batch labelled ``first`` has the embedding at ``share[i]`` of the way to ``second``.

    The rows of the network's label table are interpolated on the sphere. Rows with other labels, such as those without
    class that guidance adds to a batch, stay as they are.
    """

    def mix(table: nn.Module, labels: tuple[Int64[Tensor, " b"]], rows: Tensor) -> Tensor:
        shares = share.repeat(len(rows) // len(share))
        ends = [
            table.weight[label].cpu().expand_as(rows) for label in (first, second)
        ]  # float64 is not on every device
        return torch.where((labels[0] == first)[:, None], slerp(*ends, shares).to(rows.device), rows)

    handle = network.conditions["label"].table.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Walk:
    """A walk: 2 or 4 ``seeds`` whose first noises are the corners, and the classes at its two ends."""

    seeds: Sequence[int]
    first_class: int
    second_class: int


@dataclass(frozen=True)
class Places:
    """Places on a walk, one an image: across and down between the corners, and from the first class to the second."""

    across: Shares
    down: Shares
    to_class: Shares


def place(across: Number, down: Number, to_class: Number) -> Places:
    """Return a single place."""
    return Places(*(torch.tensor([float(value)]) for value in (across, down, to_class)))


def plane(columns: int, rows: int, to_class: Number | None) -> Places:
    """Return columns x rows places, row by row: from left to right between the first two corners.

    From top to bottom they go to the other two corners at one place ``to_class`` between the classes, or for None from
    the first class to the second.
    """
    along, below = torch.linspace(0, 1, columns).repeat(rows), torch.linspace(0, 1, rows).repeat_interleave(columns)
    if to_class is None:
        return Places(along, torch.zeros_like(along), below)
    return Places(along, below, torch.full_like(along, float(to_class)))


def tour(corners: int, frames: int) -> Places:
    """Return ``frames`` places of a closed round through all corners, for a film without a jump; the class follows.

    With two corners it goes there and back, with four around the square. Steps are equal.
    """
    ends = [(0, 0), (1, 0), (0, 0)] if corners == 2 else [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    points = torch.tensor(ends, dtype=torch.float32)
    along = torch.arange(frames) / frames * (len(ends) - 1)
    leg = along.long()
    part = (along - leg)[:, None]
    across, down = ((1 - part) * points[leg] + part * points[leg + 1]).unbind(1)
    there_and_back = 1 - (1 - 2 * torch.arange(frames) / frames).abs()
    return Places(across, down, there_and_back)


def in_parts(places: Places, count: int) -> Iterator[Places]:
    """Yield the places, at most ``count`` at a time."""
    split = (values.split(count) for values in (places.across, places.down, places.to_class))
    return (Places(*part) for part in zip(*split, strict=True))


def walk(module: GenerativeModule, route: Walk, places: Places, settings: Settings) -> Drawn:
    """Sample the image at each of ``places``. Random conditions, such as styles, are those of the first corner."""
    corners = torch.cat([unit_noise(module, seed, 1) for seed in route.seeds])
    count = len(places.across)
    labels = torch.full((count,), route.first_class)
    fixed = module.objective.sampling_conditions(route.seeds[0], 0, 1)
    conditions = {name: value.expand(count, *value.shape[1:]) for name, value in fixed.items()}
    noise = between_corners(corners, places.across, places.down)
    if route.first_class == route.second_class:
        return draw(module, noise, labels, settings, conditions)
    with mixed_class(module.network, route.first_class, route.second_class, places.to_class):
        return draw(module, noise, labels, settings, conditions)
