"""Decoder of all image inputs: applies EXIF orientation, removes transparency, converts to 8-bit RGB or grey."""

import errno
import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pmf_lightning.data.images.kinds import FIRST, formats
from pmf_lightning.utils.errors import UserError

DECODE_RULE = "upright, transparency on the background, 16 bits to 8"  # part of cache keys: change it with the pixels
BACKGROUNDS = ("white", "black", "checker")  # behind transparent pixels
CELL = 8  # pixels of a cell of the checkerboard
STRIP = 2**22  # pixels converted at a time: bounds the memory for large images

# Conversions of the decoder, as counted and printed.
TRANSPARENT = "with transparency, put on the background"
TURNED = "turned upright by the EXIF orientation"
DEEP = "of more than 8 bits, scaled to 8"
CMYK = "in CMYK, converted without a colour profile"
GREY = "in grey, repeated in each colour"
COLOURED = "in colour, made grey"
FIRST_FRAME = "of several frames, the first is used"

GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SEEKS = (errno.EINVAL, errno.EOVERFLOW)  # of offsets in a damaged file
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # Pillow raises an error at twice the limit


class Picture(NamedTuple):
    """A decoded image, in RGB or L, and the conversions applied (constants of this module)."""

    image: Image.Image
    done: tuple[str, ...]


def check_background(name: object, option: str) -> None:
    """Raise UserError for an unknown background."""
    if name not in BACKGROUNDS:
        raise UserError(f"{option}={name}: set it to {', '.join(BACKGROUNDS[:-1])} or {BACKGROUNDS[-1]}")


def open_picture(source: Path | bytes, channels: int, background: str) -> Picture:
    """Decode a file, or its bytes, to RGB, or to grey when ``channels`` is 1.

    The EXIF orientation is applied. Transparent pixels show ``background``. 16-bit grey is reduced to its high byte.
    Floats have the range 0 to 1, or 0 to 255 if one is above 1. CMYK uses Pillow's plain conversion; colour profiles
    are not applied. The first of several frames is used. An unreadable file raises Pillow's exceptions.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
        done = []
        turned = image.format == "TIFF" and _orientation(image) in TURNS  # Pillow rotates these while loading
        image.load()
        turn = _orientation(image)
        if turned or turn in TURNS:
            done.append(TURNED)
        if (grey := image.mode in GREY_MODES) == (channels == 3):  # said, since a set rarely mixes them on purpose
            done.append(GREY if grey else COLOURED)
        picture = _levels(image, "RGB" if channels == 3 else "L", background, done)
        if _is_animated(image):  # last, because the check may seek away from the first frame
            done.append(FIRST_FRAME)
        return Picture(picture.transpose(TURNS[turn]) if turn in TURNS else picture, tuple(done))


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # damaged metadata of a readable image
        return image.getexif().get(ORIENTATION, 1)
    return 1


def _is_animated(image: Image.Image) -> bool:
    with suppress(Exception):  # damage after the first frame
        return getattr(image, "is_animated", False)
    return False


def _levels(image: Image.Image, mode: str, background: str, done: list[str]) -> Image.Image:
    """Convert to RGB or L, depending on the mode of the file."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        done.append(DEEP)
        return _deep(image).convert(mode)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        picture, shown = _on_background(image, background)
        if shown:
            done.append(TRANSPARENT)
        return picture.convert(mode)
    if image.mode == "CMYK":
        done.append(CMYK)
    return image if image.mode == mode and image.format in FIRST else image.convert(mode)


def _strips(image: Image.Image):
    """Yield (first row, image) of horizontal strips, aligned to the cells of the checkerboard."""
    rows = max(1, STRIP // image.width // (2 * CELL)) * 2 * CELL
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_background(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """Return the image in RGB on its background, and whether any pixel is transparent."""
    canvas, lowest = Image.new("RGB", image.size), 255
    for top, strip in _strips(image):
        strip = strip.convert("LA") if strip.mode == "La" else strip
        colours = strip.convert("RGBA")
        lowest = min(lowest, colours.getextrema()[3][0])
        behind = _behind(colours.size, background)
        canvas.paste(Image.alpha_composite(behind, colours).convert("RGB"), (0, top))
    return canvas, lowest < 255


def _behind(size: tuple[int, int], background: str) -> Image.Image:
    if background != "checker":
        return Image.new("RGBA", size, background)
    down, across = np.ogrid[: size[1], : size[0]]
    cells = np.where((down // CELL + across // CELL) % 2, 204, 255).astype(np.uint8)
    return Image.fromarray(cells).convert("RGBA")


def _deep(image: Image.Image) -> Image.Image:
    """Convert 16-bit or 32-bit grey to 8 bits; Pillow's conversion would clip everything above 255 to white."""
    scale = _scale(image)
    grey = Image.new("L", image.size)
    for top, strip in _strips(image):
        levels = np.asarray(strip)
        if not np.isfinite(levels).all():
            raise ValueError("some levels are not finite, so the scale is unknown")
        levels = levels >> 8 if scale is None else np.rint(levels * scale)
        grey.paste(Image.fromarray(levels.astype(np.uint8)), (0, top))
    return grey


def _scale(image: Image.Image) -> float | None:
    """Return the factor that maps the levels to 0..255; None for 16 bits; ValueError if the range is unknown."""
    if image.mode.startswith("I;16"):
        return None
    low, high = image.getextrema()
    sixteen = image.mode == "I" and (high > 255 or image.format in ("PNG", "PPM"))
    if not 0 <= low <= high <= (65535 if sixteen else 255):
        raise ValueError(f"its levels go from {low:g} to {high:g}, and the scale is unknown")
    if sixteen:
        return None
    return 255.0 if image.mode == "F" and high <= 1 else 1.0


def levels_of(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an RGB or L image, with the channels last."""
    levels = np.asarray(picture)
    return levels.reshape(picture.height, picture.width, -1)


def check_damaged(reason: Exception, where: Path) -> None:
    """Raise UserError if ``reason`` is an error of the disk, the network or a permission, not of the image ``where``.

    Such an image may be readable later, so it must not be counted as damaged. The errors of Pillow have no errno.
    """
    if isinstance(reason, OSError) and reason.errno is not None and reason.errno not in SEEKS:
        raise UserError(
            f"cannot read {where} ({reason.strerror}), and it may not be damaged: check its disk and permissions, and "
            "repeat the command"
        ) from reason


def describe_conversions(done: dict[str, int]) -> str:
    """Return one line with the number of images per conversion."""
    return "converted images: " + "; ".join(f"{count:,} {what}" for what, count in sorted(done.items()))
