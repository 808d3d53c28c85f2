"""Files that somebody else may have written, read only as far as their sizes make sense: JSON, YAML, .npz and .tar.

Nothing here executes anything, and all raise ValueError (OSError where the disk refuses) for what cannot be read: it
says why in a few words. Sizes are compared before memory is taken: a header may promise 10^12 numbers, and a zip of a
kilobyte may hold a gigabyte of zeros.
"""

import ast
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

Kind = TypeVar("Kind")
MOST_TEXT = 256 * 2**20  # bytes of a JSON or YAML file: a manifest has about 200 a shard, an index 100 a run
_MOST_VALUES, _MOST_DEPTH = 200_000, 100  # of a YAML file: a configuration has 500
_MOST_RATIO = 1100  # of the sizes of a zip's member before and after: deflate reaches 1032


def read_json(path: Path, most: int = MOST_TEXT) -> Any:
    """Return what a JSON file holds; ValueError where it is none, longer than ``most`` bytes or nested too deeply."""
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Return what a text of JSON holds; ValueError where it is none, or nested too deeply."""
    return _parsed(json.loads, text)


def as_record(kind: type[Kind], found: Any) -> Kind:
    """Return the dataclass ``kind`` of a mapping of JSON; ValueError where a value is of another kind, or missing."""
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds no {kind.__name__.lower()}")
    hints = get_type_hints(kind)
    for name, value in found.items():
        if name in hints and not _is(value, hints[name]):
            raise ValueError(f"{name} is {' '.join(repr(value).split())[:60]}")
    try:
        return kind(**found)
    except TypeError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _is(value: Any, hint: Any) -> bool:
    """Tell whether a value of JSON is what an annotation says."""
    parts = get_args(hint)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list) and all(_is(one, parts[0]) for one in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is(one, parts[1]) for one in value.values())
    if parts:
        return any(_is(value, part) for part in parts)
    if hint is int:
        return type(value) is int
    return isinstance(value, hint)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, an object of JSON in each line; lines that are none, as a kill leaves, are left out."""
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict)]


def read_yaml(path: Path, parse: Callable[[str], Any], most: int = MOST_TEXT) -> Any:
    """Return what ``parse`` makes of a YAML file; ValueError where it is none, or too long without its aliases."""
    found = _parsed(parse, read_text(path, most))
    _check_extent(found)
    return found


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Return the text of a file; ValueError where it is no UTF-8, or longer than ``most`` bytes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    return content.decode()


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _check_extent(value: Any) -> None:
    """Raise ValueError for values without end: aliases may hold the same list a thousand times in a thousand lists."""
    left, waiting = _MOST_VALUES, [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        inner = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
        left -= 1 + len(inner)
        if left < 0 or depth > _MOST_DEPTH:
            raise ValueError("it is too long, or nested too deeply")
        waiting += [(one, depth + 1) for one in inner]


@dataclass(frozen=True)
class Header:
    """What a .npy says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int  # of the numbers, in bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open .npz whose arrays are read one by one; see ``open_npz``."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    @property
    def names(self) -> set[str]:
        """The names of the arrays."""
        return set(self._members)

    def header(self, name: str) -> Header:
        """Return shape and type of an array; ValueError where there is none, or not as many bytes as it says."""
        with _damaged(), self._open(name) as file:
            return self._header(name, file)

    def read(self, name: str, most: int, rows: int | None = None) -> np.ndarray:
        """Return an array, or its first ``rows``; ValueError where that has more than ``most`` bytes."""
        with _damaged(), self._open(name) as file:
            header = self._header(name, file)
            shape = header.shape
            if rows is not None and shape and not header.fortran:
                shape = (min(rows, shape[0]), *shape[1:])
            wanted = math.prod(shape) * header.dtype.itemsize
            if wanted > most:
                raise ValueError(f"{name} of {header.dtype} {list(header.shape)} has more than {most:,} bytes")
            content = bytearray(file.read(wanted))
        if len(content) != wanted:
            raise ValueError(f"{name} ends early")
        array = np.frombuffer(content, header.dtype) if wanted else np.empty(0, header.dtype)
        return array.reshape(shape, order="F" if header.fortran else "C")

    def text(self, name: str, otherwise: str) -> str:
        """Return a text that is stored as an array; ``otherwise`` where there is none. ValueError for no text."""
        if name not in self._members:
            return otherwise
        stored = self.read(name, MOST_TEXT)
        if stored.size != 1 or stored.dtype.kind != "U":
            raise ValueError(f"{name} is no text")
        return str(stored.item())

    def _open(self, name: str) -> Any:
        if name not in self._members:
            raise ValueError(f"it holds no {name}")
        member = self._members[name]
        if member.file_size > _MOST_RATIO * member.compress_size + 1000:
            raise ValueError(f"{name} is said to have {member.file_size:,} bytes in {member.compress_size:,}")
        return self._archive.open(member)

    def _header(self, name: str, file: Any) -> Header:
        header = read_header(file)
        if header.start + header.nbytes != self._members[name].file_size:
            said = f"{name} of {header.dtype} {list(header.shape)}"
            raise ValueError(f"{said} does not fit its {self._members[name].file_size:,} bytes")
        return header


def read_header(file: Any) -> Header:
    """Read the header of a .npy, at whose end ``file`` then stands; ValueError where it is none, or of objects."""
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2, 3):
        raise ValueError(f"version {major} of .npy")
    width = 2 if major == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise ValueError(f"a header of {length:,} bytes")
    content = file.read(length)
    said = ast.literal_eval(content.decode("utf-8" if major == 3 else "latin1"))
    if not isinstance(said, dict) or said.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("no header of .npy")
    shape, dtype = said["shape"], np.lib.format.descr_to_dtype(said["descr"])
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
        raise ValueError(f"the shape {shape!r:.80}")
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would run code")
    return Header(shape, dtype, bool(said["fortran_order"]), 8 + width + length)


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open a .npz; ValueError where it is none, or one of its arrays cannot be read."""
    with _damaged():
        archive = zipfile.ZipFile(path)
    with archive:
        yield Npz(archive)


class _Member(tarfile.TarInfo):
    """A member of a tar, whose size is sensible: Python before 3.11.14 reads a negative one for ever."""

    def _block(self, count: int) -> int:
        if count < 0 or (self.type in _TAR_HEADERS and count > _MOST_HEADER):
            raise tarfile.InvalidHeaderError(f"{self.name!r:.60} has a size of {count:,} bytes")
        return super()._block(count)


_TAR_HEADERS = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}
_MOST_HEADER = 2**20  # bytes of a long name, or of other words before a member


def open_tar(path: Path, inside: io.BufferedIOBase | None = None) -> tarfile.TarFile:
    """Open a tar that is not compressed, that of the file ``inside`` where there is one.

    Raises tarfile.TarError where it is none, OSError of the disk.
    """
    return tarfile.open(path, "r:", fileobj=inside, tarinfo=_Member)


@contextmanager
def _damaged() -> Iterator[None]:
    """Turn what goes wrong with a damaged zip, in many ways, into a ValueError; an OSError is the disk's."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
