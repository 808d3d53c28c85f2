"""Conversions between the fields: against formulas written out by hand, against closed flows, and there and back."""

import pytest
import torch
from common import normal, relative, uniform

from pmf_lightning.objectives.fields import (
    compound_velocity,
    expand_like,
    image_from_velocity,
    noisy_image,
    velocity_from_image,
)

COUNT, SHAPE, CLIP = 6, (6, 2, 3, 4), 0.05
X, E = normal("x", shape=SHAPE), normal("e", shape=SHAPE)
T = uniform("t", count=COUNT, low=0.1, high=0.95)
LOW = uniform("low", count=COUNT, low=0.001, high=0.049)


def per_row(formula, *fields):
    """Apply a formula of numbers and images row by row, without any broadcasting."""
    return torch.stack([formula(*row) for row in zip(*fields, strict=True)])


def test_spread_gives_each_row_its_number():
    assert expand_like(T, X).shape == (COUNT, 1, 1, 1)
    assert torch.equal(expand_like(T, X) * X, per_row(lambda t, x: t * x, T.tolist(), X))


def test_noisy_image():
    z = noisy_image(X, E, T)
    assert relative(z, per_row(lambda x, e, t: x + t * (e - x), X, E, T.tolist())) < 1e-15
    assert torch.equal(noisy_image(X, E, torch.zeros_like(T)), X)
    assert torch.equal(noisy_image(X, E, torch.ones_like(T)), E)


def test_velocity_is_noise_minus_image_where_the_clip_is_inactive():
    z = noisy_image(X, E, T)
    assert relative(velocity_from_image(z, X, T, CLIP), E - X) < 1e-14


def test_velocity_is_damped_where_the_clip_is_active():
    z = noisy_image(X, E, LOW)
    damped = per_row(lambda x, e, t: t / CLIP * (e - x), X, E, LOW.tolist())
    assert relative(velocity_from_image(z, X, LOW, CLIP), damped) < 1e-13


def test_velocity_at_time_zero_is_finite():
    assert torch.equal(velocity_from_image(X, X, torch.zeros_like(T), CLIP), torch.zeros_like(X))


@pytest.mark.parametrize("time", [T, torch.full_like(T, CLIP), torch.ones_like(T)])
def test_image_to_velocity_and_back(time):
    z = noisy_image(X, E, time)
    assert relative(image_from_velocity(z, velocity_from_image(z, E, time, CLIP), time), E) < 1e-14


def test_velocity_to_image_and_back():
    z = noisy_image(X, E, T)
    assert relative(velocity_from_image(z, image_from_velocity(z, X, T), T, CLIP), X) < 1e-14


def test_image_from_velocity_has_no_clip():
    image = per_row(lambda z, u, t: z - t * u, X, E, LOW.tolist())
    assert relative(image_from_velocity(X, E, LOW), image) < 1e-15


def test_image_from_velocity_inverts_noisy_image():
    assert relative(image_from_velocity(noisy_image(X, E, LOW), E - X, LOW), X) < 1e-15


def test_compound_velocity():
    r = 0.5 * T
    by_hand = per_row(lambda u, d, t, r: u + (t - r) * d, X, E, T.tolist(), r.tolist())
    assert relative(compound_velocity(X, E, T, r), by_hand) < 1e-15
    assert torch.equal(compound_velocity(X, E, T, T), X)


def test_compound_velocity_of_a_closed_flow_is_its_velocity():
    """dz/dt = z has z_s = z_t exp(s - t), so u = z (1 - exp(r - t)) / (t - r) and V must be v(z, t) = z."""
    r = 0.3 * T

    def u_of(z, t):
        return z * expand_like((1 - torch.exp(r - t)) / (t - r), z)

    u, du_dt = torch.func.jvp(u_of, (X, T), (X, torch.ones_like(T)))
    assert relative(compound_velocity(u, du_dt, T, r), X) < 1e-14
