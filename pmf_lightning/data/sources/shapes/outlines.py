"""Signed distance functions of the shapes, negative inside.

A shape is upright, centred at (0, 0) and inscribed in the circle of radius 1, the unit of all distances. Points are
tensors u (to the right) and v (up) of equal shape. Only sums, products, roots and comparisons are used, which round
identically on every machine. Constants are rounded to 12 decimals, since libraries differ in the last bit of a cosine.
Distances are exact near straight and round edges. Near a corner they are those to the lines through its edges, which
keeps it sharp.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "*points"]


def disc(u: Points, v: Points) -> Points:
    """Return the distance to a circle."""
    return _radius(u, v) - 1


def ring(u: Points, v: Points) -> Points:
    """Return the distance to a ring from radius 0.55 to 1."""
    return (_radius(u, v) - 0.775).abs() - 0.225


def square(u: Points, v: Points) -> Points:
    """Return the distance to a square."""
    return u.abs().maximum(v.abs()) - math.sqrt(0.5)


def triangle(u: Points, v: Points) -> Points:
    """Return the distance to an equilateral triangle."""
    return _plane(u.abs(), v, 30).maximum(-v) - 0.5


def pentagon(u: Points, v: Points) -> Points:
    """Return the distance to a regular pentagon."""
    right = u.abs()
    return _plane(right, v, 54).maximum(_plane(right, v, -18)).maximum(-v) - _direction(36)[0]


def star(u: Points, v: Points) -> Points:
    """Return the distance to a five-pointed star with inner radius 0.45."""
    u = u.abs()
    for mirror in (-36, 216):  # folds the plane onto the tenth next to the upper point
        beyond = _plane(u, v, mirror).clamp(min=0)
        across, up = _direction(mirror)
        u, v = u - 2 * across * beyond, v - 2 * up * beyond
    across, up = _direction(36)
    right, up = 1 - 0.45 * across, 0.45 * up  # normal to the edge from tip to notch
    long = math.sqrt(right * right + up * up)
    return (right / long) * u.abs() + (up / long) * (v - 1)


def cross(u: Points, v: Points) -> Points:
    """Return the distance to a cross with equal arms of width 0.6."""
    u, v = u.abs(), v.abs()
    return (u.maximum(v) - math.sqrt(1 - 0.3**2)).maximum(u.minimum(v) - 0.3)


def crescent(u: Points, v: Points) -> Points:
    """Return the distance to a crescent: a disc minus a disc of radius 0.75 around (0.45, 0)."""
    return (_radius(u, v) - 1).maximum(0.75 - _radius(u - 0.45, v))


def heart(u: Points, v: Points) -> Points:
    """Return the distance to a heart: a square standing on a corner, and two half discs on its upper sides."""
    lobe = math.sqrt(2) / 4  # radius of a half disc, for a square of diagonal 1 with its lower corner at (0, 0)
    middle = (0.625 - lobe**2) / (1.5 - 2 * lobe)  # height of the centre, and radius, of the enclosing circle
    u, v = u.abs() * middle, v * middle + middle
    square = (u + (v - 0.5).abs() - 0.5) * math.sqrt(0.5)
    return square.minimum(_radius(u - 0.25, v - 0.75) - lobe) / middle


def drop(u: Points, v: Points) -> Points:
    """Return the distance to a drop: a disc of radius 0.6 with a pointed top."""
    radius, low = 0.6, -0.4
    up = radius / (1 - low)  # vertical component of the flanks' normals
    flank = math.sqrt(1 - up * up) * u.abs() + up * (v - low)
    cone = (flank - radius).maximum(radius**2 / (1 - low) - (v - low))
    return (_radius(u, v - low) - radius).minimum(cone)


@dataclass(frozen=True)
class Outline:
    """A shape: its name, its distance function, and the order of its rotational symmetry (0: any rotation)."""

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]
    symmetry: int


OUTLINES = (  # in the order of their classes
    Outline("disc", disc, 0),
    Outline("square", square, 4),
    Outline("triangle", triangle, 3),
    Outline("star", star, 5),
    Outline("ring", ring, 0),
    Outline("cross", cross, 4),
    Outline("crescent", crescent, 1),
    Outline("heart", heart, 1),
    Outline("pentagon", pentagon, 5),
    Outline("drop", drop, 1),
)


def _radius(u: Points, v: Points) -> Points:
    # NumPy's root is the nearest number. That of torch (MKL) differs in the last bit between kinds of processors.
    return torch.from_numpy(np.sqrt((u * u + v * v).numpy()))


def _direction(degrees: int) -> tuple[float, float]:
    angle = math.radians(degrees)
    return round(math.cos(angle), 12), round(math.sin(angle), 12)


def _plane(u: Points, v: Points, degrees: int) -> Points:
    """Return the coordinate of points along a direction, given as the counterclockwise angle from the u-axis."""
    right, up = _direction(degrees)
    return right * u + up * v
