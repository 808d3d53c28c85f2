"""Pixels: whole levels 0..255 on disk and in loaders, floats in [-1, 1] in the mathematics. Both directions."""

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Map levels 0..255 to [-1, 1]: ``x / 127.5 - 1``."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to the nearest level, clipping what lies outside: ``round(clip((x + 1) / 2 * 255, 0, 255))``.

    The rule of pMF's PyTorch port; its JAX code truncates instead, equal up to ties. Half precision is widened first.
    What is not a number has no level: count such pixels before converting.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((images + 1) / 2 * 255).clip(0, 255).round().to(torch.uint8)


def to_uint8_floor(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to the level below: ``floor(clip((x + 1) * 127.5, 0, 255))``, half a grey level darker on average.

    The rule of ADM (guided-diffusion) and of Drifting's code, which the latter applies after NaN became 0.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((images + 1) * 127.5).clip(0, 255).to(torch.uint8)


def to_uint8_shifted(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Map [-1, 1] to levels by ``floor(clip(127.5 x + 128, 0, 255))``, the rule of the JAX codes of pMF and iMF.

    Equal to ``to_uint8`` but for ties (which round to even there, up here) and rounding errors beside them.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


QUANTISERS = {"round": to_uint8, "floor": to_uint8_floor, "shifted": to_uint8_shifted}
