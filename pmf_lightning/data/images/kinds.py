"""Classification of file names: image extensions registered by Pillow, and hidden names."""

import os
from contextlib import suppress
from functools import cache
from importlib import import_module

from PIL import Image

# Formats registered by Pillow but not used: data containers without a decoder, videos, and vector graphics, which need
# another program (for PostScript, Pillow would run Ghostscript on the file).
NOT_USED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
PLUGINS = ("pillow_jxl",)  # packages that add formats to Pillow when they are imported: JPEG XL (pillow-jxl-plugin)
FIRST = ("JPEG", "PNG", "WEBP")  # the most frequent formats, tried first
# Extensions of unsupported image formats, reported with a different reason than files that are not images.
OTHER_PICTURES = frozenset(
    {
        *(".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf"),
        *(".ps", ".raw", ".rw2", ".svg", ".svgz", ".wmf"),
    }
)
# Files and folders created by operating systems and servers, in addition to names that begin with a dot.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)

HIDDEN = "hidden"


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats; a file is identified by its content, not by its extension."""
    Image.init()
    for name in PLUGINS:
        with suppress(ImportError):
            import_module(name)
    return (*FIRST, *sorted(set(Image.OPEN) - NOT_USED - set(FIRST)))


@cache
def endings() -> frozenset[str]:
    """Return the image extensions, lower-case with the dot, that Pillow registers for ``formats``."""
    opened = set(formats())
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in opened)


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in endings()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or created by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def no_image(name: str) -> str:
    """Return the reason for skipping a file without an image extension."""
    ending = os.path.splitext(name)[1].lower()
    if ending in OTHER_PICTURES - endings():
        return f"an image format that Pillow does not read here ({ending})"
    return f"not an image ({ending or 'no extension'})"
