"""From an image file to a square of whole levels, by the crop that every published ImageNet number uses."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pmf_lightning.data.decoder import DECODE_RULE, levels_of, open_picture

CROP_RULE = f"adm centre crop; {DECODE_RULE}"  # part of cache keys: change the words when the pixels change
LONGEST = 16  # sides of the square: a longer picture is cut while it is resized, not after it


class Square(NamedTuple):
    """Levels [channels, size, size], and what the decoder did to the picture."""

    levels: UInt8[np.ndarray, "c size size"]
    done: tuple[str, ...]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Shrink or enlarge until the short side is ``size``, then cut the central square.

    The rule of ADM (Dhariwal & Nichol 2021): halve with a box filter while the short side is at least twice ``size``,
    then resize bicubically. An odd margin leaves its extra pixel at the right or the bottom. A very long picture is
    never enlarged as a whole: only its central square is computed.
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

    Converted before the crop, as ADM does. An unreadable file raises whatever Pillow raises.
    """
    picture, done = open_picture(source, channels, background)
    levels = levels_of(centre_crop(picture, size))
    return Square(np.ascontiguousarray(levels.transpose(2, 0, 1)), done)


def read_image(
    source: Path | bytes, size: int, channels: int, background: str = "white"
) -> UInt8[np.ndarray, "c size size"]:
    """Return the levels of ``read_square`` alone."""
    return read_square(source, size, channels, background).levels
