"""Storage formats of shard records: four for images, and npy for latents.

npy is uncompressed, webp and png are lossless, jpg is slightly lossy. Lossy compression affects every metric that
compares with images that never were JPEG files.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "c h w"]
Latents = Float32[np.ndarray, "2 c h w"]


@dataclass(frozen=True)
class Payload:
    """A storage format: Pillow's ``format`` (None: npy), whether it is lossless, and ``options`` of save by quality."""

    format: str | None
    lossless: bool
    options: Callable[[int], dict[str, object]]


PAYLOADS = {
    "npy": Payload(None, True, lambda quality: {}),
    "webp": Payload("WEBP", True, lambda quality: {"lossless": True, "method": 0, "quality": 50}),
    "png": Payload("PNG", True, lambda quality: {"compress_level": 1, "compress_type": 3}),  # zlib Z_RLE
    "jpg": Payload("JPEG", False, lambda quality: {"quality": quality, "subsampling": 0}),  # no chroma subsampling
}


def encode(image: Pixels | Latents, payload: str, quality: int | None = None) -> bytes:
    """Return the bytes of an image, uint8 [C, H, W] with 1 or 3 channels, or of latents (npy only).

    ``quality``, 1 to 100, is for jpg only. The bytes are deterministic for a given version of Pillow.
    """
    stream, kind = io.BytesIO(), PAYLOADS[payload]
    if kind.format is None:
        np.lib.format.write_array(stream, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    else:
        levels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(levels)).save(stream, kind.format, **kind.options(quality))
    return stream.getvalue()


def decode(content: bytes, payload: str, channels: int) -> Pixels | Latents:
    """Return uint8 [channels, H, W] or, for latents, float32 [2, channels, h, w], as a new array.

    Raises ValueError for bytes of any other array or image.
    """
    return _of_npy(content, channels) if PAYLOADS[payload].format is None else _of_image(content, channels)


def _of_npy(content: bytes, channels: int) -> Pixels | Latents:
    start = 10 + int.from_bytes(content[8:10], "little")  # npy version 1.0: magic, version, length of the header
    shape, dtype = _header(content[:start])
    pixels = dtype == np.uint8 and len(shape) == 3 and shape[0] == channels
    latents = dtype == np.float32 and len(shape) == 4 and shape[:2] == (2, channels)
    if not (pixels or latents):
        raise ValueError(f"an array of {dtype} {list(shape)} is neither an image nor latents of {channels} channels")
    if len(content) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {dtype} {list(shape)} in {len(content) - start:,} bytes")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).copy()


@lru_cache(maxsize=64)  # all records of a set have the same header, and parsing takes longer than copying an image
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    try:
        stream = io.BytesIO(head)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy evaluates headers as Python literals, which raise many exceptions
        raise ValueError(f"not an npy array ({type(error).__name__}: {error})") from error
    if fortran:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _of_image(content: bytes, channels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(content)) as image:
            levels = np.asarray(image)
    except Exception as error:  # Pillow raises many exceptions for damaged images
        raise ValueError(f"not a complete image ({type(error).__name__}: {error})") from error
    if channels == 1 and levels.ndim == 3 and (levels == levels[..., :1]).all():
        levels = levels[..., 0]  # webp has no grey mode: it is stored in all three channels
    levels = levels[..., None] if levels.ndim == 2 else levels
    if levels.dtype != np.uint8 or levels.shape[-1] != channels:
        raise ValueError(f"an image of {levels.dtype} {list(levels.shape)} does not have {channels} channels of bytes")
    return np.array(levels.transpose(2, 0, 1), order="C")  # a copy, because Pillow's buffer is read-only
