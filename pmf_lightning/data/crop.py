"""From an image file to a square of whole levels, by the crop that every published ImageNet number uses."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

CROP_RULE = "adm centre crop"  # part of cache keys: change the words when the pixels change


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Shrink or enlarge until the short side is ``size``, then cut the central square.

    The rule of ADM (Dhariwal & Nichol 2021): halve with a box filter while the short side is at least twice ``size``,
    then resize bicubically. An odd margin leaves its extra pixel at the right or the bottom.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image(source: Path | bytes, size: int, channels: int) -> UInt8[np.ndarray, "c size size"]:
    """Decode a file, or its bytes, to a square of uint8 [channels, size, size]: RGB, or grey when ``channels`` is 1.

    Converted before the crop, as ADM does. EXIF orientation is not applied; transparency is dropped, not blended;
    16-bit grey keeps its high byte; CMYK goes through Pillow's plain conversion without colour profiles. An unreadable
    file raises whatever Pillow raises.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = _high_byte(image)
        image.info.pop("transparency", None)  # else Pillow warns for palettes, though RGB holds no transparency
        levels = np.asarray(centre_crop(image.convert("RGB" if channels == 3 else "L"), size))
    return np.ascontiguousarray(levels.reshape(size, size, channels).transpose(2, 0, 1))


def _high_byte(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bits; Pillow's own conversion clips everything above 255 to white."""
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
