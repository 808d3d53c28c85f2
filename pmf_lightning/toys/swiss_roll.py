"""The Swiss roll on a plane in D dimensions: data, projection, exact velocity, and a distance between point sets."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.discrepancies.sliced import sliced_directions, sliced_wasserstein
from pmf_lightning.objectives.fields import Image, Quantity, Time, convert
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

Points = Float[Tensor, "n 2"]

Plane = Float[Tensor, "d 2"]

FIRST, LAST = 1.5 * math.pi, 4.5 * math.pi  # angles of the inner and outer ends


def swiss_roll(uniform: Float[Tensor, " n"], radius: Number) -> Points:
    """Return points of the Swiss roll, with the distribution of scikit-learn's make_swiss_roll.

    The points are (a cos a, a sin a), scaled to ``radius`` at the outer end; a goes from 1.5 pi to 4.5 pi as
    ``uniform`` goes from 0 to 1. With radius 2 a coordinate has variance 1.
    """
    angle = FIRST + (LAST - FIRST) * uniform
    return torch.stack((angle * angle.cos(), angle * angle.sin()), dim=1) * (radius / LAST)


def random_plane(dimension: int, seed: int) -> Plane:
    """Return a uniformly random ``dimension`` x 2 float32 matrix with orthonormal columns; ValueError below 2."""
    if dimension < 2:
        raise ValueError(f"dimension={dimension}: a plane needs at least 2")
    normal = rng.normal(seed, "plane", dimension, count=2 * dimension).reshape(dimension, 2)
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal().sign()).float()


def roll_images(seed: int, name: str, step: int, count: int, radius: Number, plane: Plane) -> Image:
    """Sample ``count`` points of the roll as images [count, D, 1, 1]."""
    points = swiss_roll(rng.uniform(seed, name, step, count=count), radius).to(plane.dtype)
    return lift(points, plane)


def lift(points: Points, plane: Plane) -> Float[Tensor, "n d 1 1"]:
    """Return the points as images with D channels."""
    return (points @ plane.T)[:, :, None, None]


def project(images: Float[Tensor, "n d 1 1"], plane: Plane) -> tuple[Points, Float[Tensor, " n"]]:
    """Return the coordinates of images on the plane, and their distances from it."""
    vectors = images.flatten(1)
    points = vectors @ plane
    return points, (vectors - points @ plane.T).norm(dim=1)


def exact_image(z: Image, t: Time, noise_scale: Number, data: Points, plane: Plane) -> Image:
    """Return E[x | z] at time t, where x is uniform on the lifted points ``data``.

    Noise off the plane is independent of x, so the weights depend on the plane only: softmax of the Gaussian exponents.
    """
    points, _ = project(z, plane)
    t = t[:, None]
    squares = (points[:, None] - (1 - t)[:, None] * data).square().sum(2)
    weights = torch.softmax(-squares / (2 * (t * noise_scale).square()), dim=1)
    return lift(weights @ data, plane)


def velocity_error(image_error: Image, t: Time, quantity: Quantity, t_clip: Number) -> Image:
    """Return the velocity error that an image error causes, for a network that predicts ``quantity``.

    The image is converted to the prediction without a clip, and the prediction to the velocity with the objective's
    clip. Both conversions are linear in image and z, and the true velocity has the same z.
    """
    z = torch.zeros_like(image_error)
    prediction = convert(image_error, z, t, "x", quantity, t_clip=0.0)
    return convert(prediction, z, t, quantity, "v", t_clip)


def sliced_distance(a: Points, b: Points, seed: int, directions: int) -> float:
    """Return the sliced 1-Wasserstein distance of two sets of points over random directions, computed in float64."""
    along = sliced_directions(a.shape[1], directions, seed)
    return sliced_wasserstein(a.double(), b.double(), along, p=1).item()


def nearest(points: Float[Tensor, "n d"], data: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the mean distance of ``points`` from the nearest of ``data``: small for points on the data's support.

    It does not measure the coverage of the support.
    """
    return torch.cdist(points, data).min(dim=1).values.mean()
