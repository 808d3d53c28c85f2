"""Transforms from image file to network input: ADM centre crop, scaling of 0..255 to [-1, 1], flips.

The crop is that of published ImageNet results. Every random number is keyed by (seed, purpose, step, global row), so an
image does not depend on the number of devices and micro-batches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from pmf_lightning.data.images.decoder import DECODE_RULE, levels_of, open_picture
from pmf_lightning.utils import rng

CROP_RULE = f"adm centre crop; {DECODE_RULE}"  # part of cache keys: change the text when the pixels change

LONGEST = 16  # aspect ratio above which an image is cropped during the resize, not after it


class Square(NamedTuple):
    """A cropped image [channels, size, size], and the conversions that the decoder applied."""

    levels: UInt8[np.ndarray, "c size size"]
    done: tuple[str, ...]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize until the short side is ``size``, then crop the central square.

    The rule of ADM (Dhariwal & Nichol 2021): halve with a box filter while the short side is at least twice ``size``,
    then resize bicubically. With an odd margin, one more pixel is cut at the right or the bottom. For images of extreme
    aspect ratio only the central square is resized.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) > LONGEST * size:
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def read_square(source: Path | bytes, size: int, channels: int, background: str) -> Square:
    """Decode a file, or its bytes, by ``decoder.open_picture``, and crop it.

    The colour conversion is before the crop, as in ADM. An unreadable file raises Pillow's exceptions.
    """
    picture, done = open_picture(source, channels, background)
    levels = levels_of(centre_crop(picture, size))
    return Square(np.ascontiguousarray(levels.transpose(2, 0, 1)), done)


def to_float(images: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Map levels 0..255 to [-1, 1]: ``x / 127.5 - 1``."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to the nearest level, with clipping: ``round(clip((x + 1) / 2 * 255, 0, 255))``.

    The rule of pMF's PyTorch port; its JAX code truncates instead, equal up to ties. Half precision is converted to
    float32 first. NaN has no level; count such pixels before converting.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((images + 1) / 2 * 255).clip(0, 255).round().to(torch.uint8)


def to_uint8_floor(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to the level below: ``floor(clip((x + 1) * 127.5, 0, 255))``, half a grey level darker on average.

    The rule of ADM (guided-diffusion) and of Drifting's code, which first replaces NaN by 0.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((images + 1) * 127.5).clip(0, 255).to(torch.uint8)


def to_uint8_shifted(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to levels by ``floor(clip(127.5 x + 128, 0, 255))``, the rule of the JAX codes of pMF and iMF.

    Equal to ``to_uint8`` except for ties (rounded to even there, up here) and rounding errors next to ties.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


QUANTISERS = {"round": to_uint8, "floor": to_uint8_floor, "shifted": to_uint8_shifted}

Pixels = UInt8[Tensor, "b *places c h w"]

Moments = Float[Tensor, "b *places 2 c h w"]

Normalise = Callable[[Tensor], Tensor]  # raw latents [n,c,h,w] -> normalised latents for the network


def preprocess_pixels(
    pixels: Pixels, flip: bool, rows: Int64[Tensor, " b"], seed: int, step: int, *role: str
) -> Float32[Tensor, "b *places c h w"]:
    """Return pixels in [-1, 1]; with ``flip``, half of the images are flipped horizontally.

    The flip of image p of row r depends on number p of the stream (seed, "flip", *role, step, r). A row has several
    images for the positives and negatives (``role``) of drifting.
    """
    if flip:
        places = pixels.shape[1:-3]
        turned = _coins(rows, places.numel(), seed, "flip", *role, step).view(len(rows), *places, 1, 1, 1)
        pixels = torch.where(turned.to(pixels.device, non_blocking=True), pixels.flip(-1), pixels)
    return to_float(pixels)


def preprocess_latents(
    moments: Moments, normalise: Normalise, rows: Int64[Tensor, " b"], seed: int, step: int, *role: str
) -> Float32[Tensor, "b *places c h w"]:
    """Sample normalised latents, mean + std e of each image, from moments of raw latents (mean, std).

    e is standard normal, sampled on the device of ``moments`` with the key (seed, "latent", *role, step, row), for all
    images of a row together.
    """
    mean, std = moments.float().unbind(-4)
    noise = rng.normal_images(
        seed, "latent", *role, step, rows=rows, shape=tuple(mean.shape[1:]), device=moments.device
    )
    raw = (mean + std * noise).flatten(0, -4)
    return normalise(raw).view(mean.shape)


def _coins(rows: Int64[Tensor, " b"], count: int, *names: int | str) -> Bool[Tensor, "b {count}"]:
    """Return ``count`` random booleans per row."""
    coins = [rng.uniform(*names, row, count=count) for row in rows.tolist()]
    return torch.stack(coins) < 0.5 if coins else torch.empty(0, count, dtype=torch.bool)
