"""Bring square images to another size and number of channels, without inventing pixels where padding does."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pmf_lightning.data.transforms import centre_crop

RULE = "adm down; whole factors up, then black around"  # part of cache keys: change it with the pixels
_CHUNK = 1024  # images converted at a time


def fit(
    images: UInt8[np.ndarray, "n c h h"], side: int, channels: int
) -> UInt8[np.ndarray, "n {channels} {side} {side}"]:
    """Return the images with ``side`` pixels along a side and 1 or 3 ``channels``.

    Smaller images are made by ADM's rule (``centre_crop``). Larger ones are enlarged by the largest whole factor that
    fits, bicubically, and the rest is padded with black: 28 to 32 pixels is two black pixels on each side (of an odd
    rest the larger part is at the right and the bottom). Grey is repeated over the channels; colour becomes grey by
    ITU-R 601 (Pillow's "L").
    """
    if images.shape[1:] == (channels, side, side):
        return np.ascontiguousarray(images)
    fitted = np.zeros((len(images), channels, side, side), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = _resized(images[rows], side, pool)
            margin = (side - part.shape[-1]) // 2
            inner = slice(margin, margin + part.shape[-1])
            fitted[rows, :, inner, inner] = _grey(part) if part.shape[1] == 3 and channels == 1 else part
    return fitted


def _resized(images: UInt8[np.ndarray, "n c h h"], side: int, pool: ThreadPoolExecutor) -> UInt8[np.ndarray, "n c k k"]:
    """Return the images in the largest size that is at most ``side`` and ``side`` itself or a whole multiple."""
    own = images.shape[-1]
    size = side if side < own else side // own * own
    if size == own:
        return images

    def one(image: UInt8[np.ndarray, "c h h"]) -> UInt8[np.ndarray, "c k k"]:
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        enlarged = size > own
        picture = picture.resize((size, size), Image.Resampling.BICUBIC) if enlarged else centre_crop(picture, size)
        return np.asarray(picture).reshape(size, size, len(image)).transpose(2, 0, 1)

    return np.stack(list(pool.map(one, images)))


def _grey(images: UInt8[np.ndarray, "n 3 h w"]) -> UInt8[np.ndarray, "n 1 h w"]:
    red, green, blue = images.astype(np.uint32).transpose(1, 0, 2, 3)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, None]
