"""Fields on the path between image and noise, and the conversions between them.

Time runs from t=0 (the image x) to t=1 (the noise e): z = (1-t) x + t e, v = dz/dt = e - x, and
u(z, r, t) = 1/(t-r) * integral of v over [r, t] is the average velocity, u(z, t, t) = v(z, t).
All conversions of the project are defined here. Fields are [B,C,H,W], times [B].
"""

from typing import Literal

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from pmf_lightning.utils.precision import Number, at_least_float32

Image = Float[Tensor, "b c h w"]
Time = Float[Tensor, " b"]
Quantity = Literal["x", "eps", "v"]  # prediction types: the image x, the noise e, the velocity v


def expand_like(values: Shaped[Tensor, " b"], like: Image) -> Shaped[Tensor, "b 1 1 1"]:
    """Reshape one value per sample for broadcasting over an image."""
    return values.view(-1, *[1] * (like.ndim - 1))


def rows_of(chosen: Bool[Tensor, " b"], like: Tensor) -> Int64[Tensor, " n"]:
    """Return the indices of the chosen rows, on the device of ``like``."""
    return chosen.nonzero().squeeze(1).to(like.device, non_blocking=True)


def sum_of_squares(field: Image) -> Float[Tensor, " b"]:
    """Return the sums of squares over C, H, W, at least in float32."""
    return at_least_float32(field).square().flatten(1).sum(1)


def noisy_image(x: Image, e: Image, t: Time) -> Image:
    """Return z = (1-t) x + t e (pMF, eq. 1)."""
    t = expand_like(t, x)
    return (1 - t) * x + t * e


def path_velocity(x: Image, e: Image) -> Image:
    """Return v = dz/dt = e - x, the velocity of the straight path."""
    return e - x


def check_clip(t_clip: Number) -> None:
    """Raise ValueError unless the least divisor of a conversion to velocities is a time."""
    if not 0 <= t_clip <= 1:
        raise ValueError(f"t_clip={t_clip}: it is a time, from 0 to 1")


def velocity_from_image(z: Image, x: Image, t: Time, t_clip: Number) -> Image:
    """Return (z - x) / clip(t, t_clip, 1): the velocity of an image, or the average velocity u of an x-prediction.

    The clip (pMF's code, 0.05) bounds the weight of nearly clean images. Target and prediction use the same clip, so
    that a perfect prediction has zero loss.
    """
    return (z - x) / expand_like(t.clamp(t_clip, 1.0), z)


def image_from_velocity(z: Image, u: Image, t: Time) -> Image:
    """Return the generalised denoised image x(z, r, t) = z - t u(z, r, t) (pMF, eq. 8), without a clip."""
    return z - expand_like(t, z) * u


def noise_from_image(z: Image, x: Image, t: Time, t_clip: Number) -> Image:
    """Return (z - (1-t) x) / clip(t, t_clip, 1) (JiT, table 1)."""
    return (z - expand_like(1 - t, z) * x) / expand_like(t.clamp(t_clip, 1.0), z)


def image_from_noise(z: Image, e: Image, t: Time, t_clip: Number) -> Image:
    """Return (z - t e) / clip(1-t, t_clip, 1) (JiT, table 1); the paper states no clip for this division."""
    return (z - expand_like(t, z) * e) / expand_like((1 - t).clamp(t_clip, 1.0), z)


def velocity_from_noise(z: Image, e: Image, t: Time, t_clip: Number) -> Image:
    """Return (e - z) / clip(1-t, t_clip, 1) (JiT, table 1), with the clip of ``image_from_noise``."""
    return (e - z) / expand_like((1 - t).clamp(t_clip, 1.0), z)


def noise_from_velocity(z: Image, v: Image, t: Time) -> Image:
    """Return z + (1-t) v (JiT, table 1)."""
    return z + expand_like(1 - t, z) * v


def convert(answer: Image, z: Image, t: Time, given: Quantity, wanted: Quantity, t_clip: Number) -> Image:
    """Convert the prediction ``answer`` of z from the quantity ``given`` to ``wanted`` (JiT, table 1)."""
    match given, wanted:
        case "x", "eps":
            return noise_from_image(z, answer, t, t_clip)
        case "x", "v":
            return velocity_from_image(z, answer, t, t_clip)
        case "eps", "x":
            return image_from_noise(z, answer, t, t_clip)
        case "eps", "v":
            return velocity_from_noise(z, answer, t, t_clip)
        case "v", "x":
            return image_from_velocity(z, answer, t)
        case "v", "eps":
            return noise_from_velocity(z, answer, t)
    return answer


def compound_velocity(u: Image, du_dt: Image, t: Time, r: Time) -> Image:
    """Return V = u + (t - r) du/dt, which equals v if the MeanFlow identity holds (iMF, eq. 12)."""
    return u + expand_like(t - r, u) * du_dt
