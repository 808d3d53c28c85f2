"""The files below a folder, or in a zip: their names, texts next to images, and the images themselves."""

import os
import re
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pmf_lightning.data.images.kinds import HIDDEN, is_hidden, is_image, no_image
from pmf_lightning.data.images.listing import LeftOut, Listing, list_images
from pmf_lightning.utils.bounded_files import MOST_RATIO, MOST_TEXT, read_text
from pmf_lightning.utils.errors import UserError

MOST_BYTES = 2**30  # largest image file
BOM = "\ufeff"  # at the start of texts that some programs on Windows write
LOCAL_HEADER = 30  # bytes before the name of a zip member
ENCRYPTED = "encrypted"
OTHER_METHOD = "compressed by a method other than deflate"
TOO_LARGE = "larger than any image"
TWICE = "a name that the zip holds twice"
TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class FolderFiles:
    """The files below the folder ``root``; names have slashes and are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> Listing:
        """List the images, and the files that are not used."""
        return list_images(self.root)

    def text(self, name: str) -> str | None:
        """Return the text of a file, None if there is none; ValueError if it is too long or not UTF-8."""
        path = self.root / name
        if not path.is_file():
            return None
        return read_text(path).removeprefix(BOM)

    def read(self, name: str) -> Path | bytes:
        """Return what the decoder reads: the path of an image."""
        return self.root / name

    def state(self, name: str) -> str:
        """Return size and time of a file, or "gone" if it has been deleted; it is then reported when it is read."""
        try:
            status = (self.root / name).stat()
        except OSError:
            return "gone"
        return f"{status.st_size} {status.st_mtime_ns}"


class ZipMember(NamedTuple):
    """Place of a file in a zip: offset of its local header, bytes in the zip and unpacked, CRC-32, and method."""

    start: int
    packed: int
    size: int
    crc: int
    method: int

    def read(self, path: Path | str) -> bytes:
        """Return the unpacked bytes; OSError if the zip is shorter, or if they are damaged."""
        with open(path, "rb") as file:
            file.seek(self.start)
            header = file.read(LOCAL_HEADER)
            if len(header) < LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
                raise OSError("its place in the zip holds something else")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            content = file.read(self.packed)
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
            except zlib.error as error:
                raise OSError(f"damaged in the zip ({error})") from error
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise OSError("damaged in the zip (its checksum differs)")
        return content


class ZipFiles:
    """The files of the folder ``inside`` ("": all) of the zip ``path``; ``root`` is where messages say they are.

    Without ``inside``, names begin below the folder that holds all images and further folders, if there is one. Raises
    UserError, naming ``option``, for a file that is no zip.
    """

    def __init__(self, path: Path, inside: str, option: str) -> None:
        self.path, self.option = path, option
        try:
            status = path.stat()
            members, twice = _members(str(path), status.st_size, status.st_mtime_ns)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{option}={path}: it is damaged, or no zip ({reason}); get or make it again") from error
        prefix = f"{inside}/" if inside else _around(members)
        self.root = path / prefix
        self.members = {name.removeprefix(prefix): one for name, one in members.items() if name.startswith(prefix)}
        self.twice = [LeftOut(name, TWICE) for name in twice if name.startswith(prefix)]

    def listing(self) -> Listing:
        """List the images, and the files that are not used."""
        found = Listing(left_out=list(self.twice))
        for name, member in self.members.items():
            reason = _unused(name, member)
            if reason is None:
                found.images.append(name)
            else:
                found.left_out.append(LeftOut(name, reason))
        found.images.sort(key=lambda name: name.split("/"))
        return found

    def text(self, name: str) -> str | None:
        """Return the text of a file, None if there is none; ValueError if it is too long or not UTF-8."""
        member = self.members.get(name)
        if not isinstance(member, ZipMember):
            return None
        if member.size > MOST_TEXT:
            raise ValueError(f"it is longer than {MOST_TEXT:,} bytes")
        return member.read(self.path).decode().removeprefix(BOM)

    def read(self, name: str) -> Path | bytes:
        """Return what the decoder reads: the bytes of an image; OSError if they are damaged."""
        return self.members[name].read(self.path)

    def state(self, name: str) -> str:
        """Return size and checksum of a file."""
        return f"{self.members[name].size} {self.members[name].crc:08x}"


Files = FolderFiles | ZipFiles


def open_files(root: str, option: str) -> Files:
    """Open a folder, a zip, or a folder in a zip (``faces.zip/train``); UserError if there is none of them."""
    path = Path(root).expanduser()
    if path.is_dir():
        return FolderFiles(path)
    archive = zip_of(path)
    if archive is None and path.is_file() and TAR.search(path.name.lower()):
        raise UserError(
            f"{option}={root} is a tar: make shards of it, python -m pmf_lightning.shard in={root} out=..., and "
            "train with data=shards"
        )
    if archive is None:
        raise UserError(f"{option}={root} is not a folder: set it to a folder of images, or to a zip of them")
    files = ZipFiles(archive, path.relative_to(archive).as_posix().removeprefix("."), option)
    if not files.members:
        raise UserError(f"{option}={root}: the zip holds nothing there; give the zip, or a folder in it")
    return files


def zip_of(path: Path) -> Path | None:
    """Return the zip that ``path`` is, or is in; None if there is none."""
    return next((one for one in (path, *path.parents) if one.suffix.lower() == ".zip" and one.is_file()), None)


@lru_cache(maxsize=4)  # the directory of a large zip takes seconds, and is needed for the number of classes too
def _members(path: str, size: int, changed: int) -> tuple[dict[str, ZipMember | str], list[str]]:
    """Return the members of a zip by name, a reason in place of those that are not read; and the names held twice.

    Older programs on Windows separate the folders of a name by backslashes, which become slashes.
    """
    found: dict[str, ZipMember | str] = {}
    twice = []
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        separator = "/" if any("/" in info.filename for info in infos) else "\\"
        for info in infos:
            name = info.filename.replace(separator, "/").removeprefix("./")
            if name.endswith("/"):
                continue
            if name in found:
                twice.append(name)
            member = ZipMember(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
            found[name] = _why_not(info) or member
    return found, twice


def _why_not(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return ENCRYPTED
    if info.compress_type not in METHODS:
        return OTHER_METHOD
    limit = MOST_RATIO * info.compress_size + 1000
    return TOO_LARGE if info.file_size > min(limit, max(MOST_BYTES, MOST_TEXT)) else None


def _unused(name: str, member: ZipMember | str) -> str | None:
    """Return the reason why a file in a zip is not used; None for an image."""
    parts = PurePosixPath(name).parts
    if any(map(is_hidden, parts)):
        return HIDDEN
    if not is_image(name):
        return no_image(name)
    return member if isinstance(member, str) else None


def _around(members: dict[str, ZipMember | str]) -> str:
    """Return the folders around all images of a zip that hold further folders or a dataset.json, with a slash."""
    images = [name.split("/") for name, member in members.items() if _unused(name, member) is None]
    prefix = ""
    while images and all(len(parts) > 1 for parts in images) and len({parts[0] for parts in images}) == 1:
        below = f"{prefix}{images[0][0]}/"
        if f"{prefix}dataset.json" in members or not (
            any(len(parts) > 2 for parts in images) or f"{below}dataset.json" in members
        ):
            break
        prefix, images = below, [parts[1:] for parts in images]
    return prefix
