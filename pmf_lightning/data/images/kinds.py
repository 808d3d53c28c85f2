"""Which names are those of images: the endings that Pillow registers, and the names that are hidden."""

import os
from functools import cache

from PIL import Image

# Formats that Pillow registers and that are not used: containers of data without a decoder, films, and drawings, which
# need another program (for PostScript, Pillow would start Ghostscript on the file).
NOT_USED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
FIRST = ("JPEG", "PNG", "WEBP")  # tried first, being the most frequent
# Endings of pictures, named in another reason than the one of files that are no images.
OTHER_PICTURES = frozenset(
    {
        *(".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf"),
        *(".ps", ".raw", ".rw2", ".svg", ".svgz", ".wmf"),
    }
)
# What operating systems and servers leave in folders, apart from names that begin with a dot.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)

HIDDEN = "hidden"


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are opened, by Pillow's names; a file is recognised by its content, not by its ending."""
    Image.init()
    return (*FIRST, *sorted(set(Image.OPEN) - NOT_USED - set(FIRST)))


@cache
def endings() -> frozenset[str]:
    """Return the endings of images, in small letters, with the dot: those that Pillow registers for ``formats``."""
    opened = set(formats())
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in opened)


def is_image(name: str) -> bool:
    """Say whether a file name has the ending of an image, in small or capital letters."""
    return os.path.splitext(name)[1].lower() in endings()


def is_hidden(name: str) -> bool:
    """Say whether a file or folder of this name is hidden, or made by an operating system for itself."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def no_image(name: str) -> str:
    """Return the reason why a file that has no ending of an image is left out."""
    ending = os.path.splitext(name)[1].lower()
    if ending in OTHER_PICTURES - endings():
        return f"a picture of a kind that Pillow does not read here ({ending})"
    return f"not an image ({ending or 'no ending'})"
