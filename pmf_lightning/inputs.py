"""From what the data hand out to what a network sees: pixels scaled and perhaps turned around, latents drawn.

Every random number is keyed by (seed, what it is for, step, global row), so an image is the same for any number of
devices and micro-batches.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from pmf_lightning import draws
from pmf_lightning.data.pixels import to_float

Pixels = UInt8[Tensor, "b *places c h w"]
Moments = Float[Tensor, "b *places 2 c h w"]
Normalise = Callable[[Tensor], Tensor]  # raw latents [n,c,h,w] -> those that a network sees


def pixels_seen(
    pixels: Pixels, flip: bool, rows: Int64[Tensor, " b"], seed: int, step: int, *role: str
) -> Float32[Tensor, "b *places c h w"]:
    """Return pixels in [-1, 1]; with ``flip``, half of the images are mirrored left to right.

    Of an image at place p of row r, number p of the draws (seed, "flip", *role, step, r) decides. There are several
    places where a row has several images, as the positives and negatives (``role``) of drifting.
    """
    if flip:
        places = pixels.shape[1:-3]
        turned = _coins(rows, places.numel(), seed, "flip", *role, step).view(len(rows), *places, 1, 1, 1)
        pixels = torch.where(turned.to(pixels.device), pixels.flip(-1), pixels)
    return to_float(pixels)


def latents_seen(
    moments: Moments, normalise: Normalise, rows: Int64[Tensor, " b"], seed: int, step: int, *role: str
) -> Float32[Tensor, "b *places c h w"]:
    """Return normalised latents, mean + std e of each image, from moments of raw latents (mean, std).

    e is standard normal, drawn on the device of ``moments`` by the key (seed, "latent", *role, step, row), for all
    images of a row together.
    """
    mean, std = moments.float().unbind(-4)
    noise = draws.normal_images(
        seed, "latent", *role, step, rows=rows, shape=tuple(mean.shape[1:]), device=moments.device
    )
    raw = (mean + std * noise).flatten(0, -4)
    return normalise(raw).view(mean.shape)


def _coins(rows: Int64[Tensor, " b"], count: int, *names: int | str) -> Bool[Tensor, "b {count}"]:
    """Toss ``count`` coins for each row."""
    tossed = [draws.uniform(*names, row, count=count) for row in rows.tolist()]
    return torch.stack(tossed) < 0.5 if tossed else torch.empty(0, count, dtype=torch.bool)
