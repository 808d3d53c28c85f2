"""Input tars: find those that match a pattern, and unpack compressed ones."""

import bz2
import glob
import gzip
import lzma
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO

from webdataset.shardlists import expand_urls

from pmf_lightning.data.images.kinds import HIDDEN, is_hidden, is_image
from pmf_lightning.data.images.listing import DANGLING, LeftOut
from pmf_lightning.utils.errors import UserError

PACKED = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = (".tar", *(f".tar{end}" for end in PACKED), ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
BEGINNINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
UNPACKED = ".unpacked"  # temporary folder in out
CHUNK = 2**20
MOST_TIMES = 50  # limit of the uncompressed size of a tar: this factor on its compressed size, plus 1 GiB
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def is_tar(name: str) -> bool:
    """Return whether a file name is that of a tar, compressed or not."""
    return name.lower().endswith(ENDINGS)


def tar_stem(name: str) -> str:
    """Return the file name of a tar without its ending, which may have two parts."""
    ending = next((end for end in ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def find_tars(pattern: str) -> tuple[list[Path], list[LeftOut]]:
    """Return the tars that match ``pattern``: a file, a folder of tars, a glob, or a range in braces.

    A range is written as ``{000000..000146}``. Returns the tars sorted by name, and the other files of the folder.
    UserError if there are none or some are missing.
    """
    path, left_out = Path(pattern).expanduser(), []
    if path.is_dir():
        entries = sorted(path.iterdir())
        found = [entry for entry in entries if is_tar(entry.name) and not is_hidden(entry.name) and entry.is_file()]
        left_out = [LeftOut(entry.name, _no_tar(entry)) for entry in entries if entry not in set(found)]
    elif path.is_file():
        found = [path]  # its name may have the brackets or braces of a pattern
    elif "{" in pattern:
        found = sorted(Path(name).expanduser() for name in _expanded(pattern))
    else:
        found = sorted(Path(name) for name in glob.glob(str(path)))
    if not found:
        raise UserError(f"in={pattern}: no such file or folder; give class folders, or WebDataset tars")
    for tar in found:
        if not tar.is_file():
            raise UserError(f"in={pattern}: {tar} is missing ({len(found)} tars in all); fetch it or name fewer")
        if is_image(tar.name):
            raise UserError(f"in={pattern}: {tar} is one image; give the folder that holds the images")
        if not is_tar(tar.name):
            raise UserError(f"in={pattern}: {tar} is not a tar; unpack it, and give the images as class folders")
    if len({tar.name for tar in found}) < len(found):
        raise UserError(f"in={pattern}: two tars have the same name; bring all into one folder")
    return found, left_out


def _no_tar(entry: Path) -> str:
    if is_hidden(entry.name):
        return HIDDEN
    return "not a tar" if entry.exists() else DANGLING


def _expanded(pattern: str) -> list[str]:
    try:
        return expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"in={pattern}: {error}; write a range as {{000000..000146}}") from error


@contextmanager
def room_to_unpack(out: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder for unpacked tars; it is removed before, after a killed run, and at exit."""
    folder = out / UNPACKED
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compression(path: Path) -> str | None:
    """Return the compression of a file, from its first bytes; None if it is not compressed."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((kind for begin, kind in BEGINNINGS.items() if start.startswith(begin)), None)


def unpack(path: Path, folder: Path) -> tuple[Path, str | None]:
    """Uncompress a tar into ``folder``; return the path, and a description of the damage, if any.

    Raises UserError if the disk is too small, or if Python cannot read this compression.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / f"{path.name}.tar"
    room, most = int(0.9 * shutil.disk_usage(folder).free), MOST_TIMES * path.stat().st_size + 2**30
    with plain.open("wb") as target:
        try:
            with _opener(path)(path) as source:
                while chunk := source.read1(CHUNK):  # reads as much as possible of a damaged file
                    if (room := room - len(chunk)) < 0:
                        raise UserError(
                            f"in={path}: the disk of {folder.parent} has no space to unpack it; set out to a larger one"
                        )
                    if (most := most - len(chunk)) < 0:
                        return (
                            plain,
                            f"it unpacks to more than {MOST_TIMES} times its size, which tars of images do not",
                        )
                    target.write(chunk)
        except DAMAGE as error:
            return plain, f"{type(error).__name__}: {error}"
    return plain, None


def _opener(path: Path) -> Callable[[Path], IO[bytes]]:
    kind = compression(path)
    if kind == "zstd":
        for name in ("compression.zstd", "zstandard"):  # Python 3.14's module; the package
            try:
                return import_module(name).open
            except ImportError:
                continue
        raise UserError(
            f"in={path}: it is compressed with zstd, which this Python cannot read; unpack it: zstd -d {path}"
        )
    return {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
