"""Pre-conditioners: the denoised image as X = c_skip(t) z + c_out(t) F, with F the network's raw output.

pMF (table 3a) compares three with none (X = F, best by far if a patch has more values than the network's width).
The paper names them "linear", "EDM-style" and "sCM-style" without code; the formulas below are derived for the path
z = (1-t) x + t e, with sigma_data the standard deviation of the data and noise_scale that of e.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pmf_lightning.objectives.fields import Image, Time, expand_like
from pmf_lightning.utils.precision import Number


@runtime_checkable
class Preconditioner(Protocol):
    """(c_skip, c_out) as functions of the time t [B]."""

    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """Return c_skip and c_out."""
        ...


def preconditioned(preconditioner: Preconditioner, z: Image, F: Image, t: Time) -> Image:
    """Return X = c_skip(t) z + c_out(t) F."""
    c_skip, c_out = preconditioner.coefficients(t)
    return expand_like(c_skip, z) * z + expand_like(c_out, z) * F


@dataclass(frozen=True)
class Linear:
    """X = (1-t) z + t F, which is the identity at the clean end of the path (pMF, table 3a)."""

    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """Return 1 - t and t."""
        return 1 - t, t


@dataclass(frozen=True)
class EDM:
    """EDM's pre-conditioner (Karras et al. 2022, table 1), transformed from z' = x + sigma e to our path.

    z' = z / (1-t) and sigma = t noise_scale / (1-t) turn sigma_data^2 / (sigma^2 + sigma_data^2) z' into
    c_skip = (1-t) sigma_data^2 / s^2 and c_out = t noise_scale sigma_data / s, with
    s^2 = (t noise_scale)^2 + (1-t)^2 sigma_data^2 the variance of z. If F has unit variance, X is the best linear
    estimate of x plus a residual of the right variance.
    """

    sigma_data: Number
    noise_scale: Number

    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """Return c_skip and c_out."""
        noise, image = t * self.noise_scale, (1 - t) * self.sigma_data
        variance = noise * noise + image * image
        return image * self.sigma_data / variance, noise * self.sigma_data / variance.sqrt()


@dataclass(frozen=True)
class SCM:
    """TrigFlow's X = cos(tau) z - sin(tau) sigma_data F (Lu and Song 2024, sCM), at the angle tau = pi t / 2.

    The angle replaces our time, whatever the scale of the noise. The exact transformation,
    tan(tau) = t noise_scale / ((1-t) sigma_data), would be EDM's pre-conditioner up to the sign of F.
    """

    sigma_data: Number

    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """Return cos(pi t / 2) and -sigma_data sin(pi t / 2)."""
        angle = t * (math.pi / 2)
        return angle.cos(), angle.sin() * -self.sigma_data
