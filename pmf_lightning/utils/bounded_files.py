"""Read untrusted JSON, YAML, .npz and .tar files with limits on their sizes.

No content is executed. Every function raises ValueError, with a short reason, for a file that cannot be read, and
OSError for a disk error. Sizes are compared before memory is allocated: a header may claim 10^12 numbers, and a zip
of a kilobyte may expand to a gigabyte of zeros.
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
MOST_TEXT = 256 * 2**20  # bytes of a JSON or YAML file; a manifest has about 200 per shard, an index 100 per run
_MOST_VALUES, _MOST_DEPTH = 200_000, 100  # of a YAML file; a configuration has 500 values
MOST_RATIO = 1100  # compression ratio of a zip member; deflate reaches 1032


def read_json(path: Path, most: int = MOST_TEXT) -> Any:
    """Return the content of a JSON file; ValueError if invalid, longer than ``most`` bytes or nested too deeply."""
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Parse a JSON text; ValueError if it is invalid or nested too deeply."""
    return _parsed(json.loads, text)


def as_record(kind: type[Kind], found: Any) -> Kind:
    """Build the dataclass ``kind`` from a JSON mapping; ValueError if a value is missing or has the wrong type."""
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
    """Whether a JSON value matches a type annotation."""
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
    """Return the JSON objects of a log, one per line. Invalid lines, which a killed process leaves, are skipped."""
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict)]


def read_yaml(path: Path, parse: Callable[[str], Any], most: int = MOST_TEXT) -> Any:
    """Read a YAML file with ``parse``; ValueError if it is invalid, or too long once its aliases are expanded."""
    found = _parsed(parse, read_text(path, most))
    _check_extent(found)
    return found


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Return the text of a file; ValueError if it is not UTF-8 or longer than ``most`` bytes."""
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
    """Raise ValueError for too many values: nested YAML aliases grow exponentially when expanded."""
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
    """Header of a .npy array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int  # offset of the numbers, in bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """Open .npz file whose arrays are read one at a time; see ``open_npz``."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    @property
    def names(self) -> set[str]:
        """The names of the arrays."""
        return set(self._members)

    def header(self, name: str) -> Header:
        """Return the header of an array; ValueError if the array is missing or its size does not match the header."""
        with _damaged(), self._open(name) as file:
            return self._header(name, file)

    def read(self, name: str, most: int, rows: int | None = None) -> np.ndarray:
        """Return an array, or its first ``rows``; ValueError if the result has more than ``most`` bytes."""
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
        """Return a text stored as an array, ``otherwise`` if it is missing; ValueError if the array is not text."""
        if name not in self._members:
            return otherwise
        stored = self.read(name, MOST_TEXT)
        if stored.size != 1 or stored.dtype.kind != "U":
            raise ValueError(f"{name} is not text")
        return str(stored.item())

    def _open(self, name: str) -> Any:
        if name not in self._members:
            raise ValueError(f"it holds no {name}")
        member = self._members[name]
        if member.file_size > MOST_RATIO * member.compress_size + 1000:
            raise ValueError(f"{name} claims to have {member.file_size:,} bytes in {member.compress_size:,}")
        return self._archive.open(member)

    def _header(self, name: str, file: Any) -> Header:
        header = read_header(file)
        if header.start + header.nbytes != self._members[name].file_size:
            described = f"{name} of {header.dtype} {list(header.shape)}"
            raise ValueError(f"{described} does not fit its {self._members[name].file_size:,} bytes")
        return header


def read_header(file: Any) -> Header:
    """Read a .npy header and leave ``file`` at its end; ValueError if it is invalid or the array holds objects."""
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2, 3):
        raise ValueError(f"version {major} of .npy")
    width = 2 if major == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise ValueError(f"a header of {length:,} bytes")
    content = file.read(length)
    fields = ast.literal_eval(content.decode("utf-8" if major == 3 else "latin1"))
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("no header of .npy")
    shape, dtype = fields["shape"], np.lib.format.descr_to_dtype(fields["descr"])
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
        raise ValueError(f"the shape {shape!r:.80}")
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would run code")
    return Header(shape, dtype, bool(fields["fortran_order"]), 8 + width + length)


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open a .npz; ValueError if it is invalid or one of its arrays cannot be read."""
    with _damaged():
        archive = zipfile.ZipFile(path)
    with archive:
        yield Npz(archive)


class _Member(tarfile.TarInfo):
    """Tar member with a checked size: Python before 3.11.14 loops forever on a negative one."""

    def _block(self, count: int) -> int:
        if count < 0 or (self.type in _TAR_HEADERS and count > _MOST_HEADER):
            raise tarfile.InvalidHeaderError(f"{self.name!r:.60} has a size of {count:,} bytes")
        return super()._block(count)


_TAR_HEADERS = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}
_MOST_HEADER = 2**20  # bytes of a long name or an extended header before a member


def open_tar(path: Path, inside: io.BufferedIOBase | None = None) -> tarfile.TarFile:
    """Open an uncompressed tar, read from the file object ``inside`` if given.

    Raises tarfile.TarError for an invalid tar and OSError for a disk error.
    """
    return tarfile.open(path, "r:", fileobj=inside, tarinfo=_Member)


@contextmanager
def _damaged() -> Iterator[None]:
    """Turn the many errors of a damaged zip into ValueError. OSError passes: it is a disk error."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
