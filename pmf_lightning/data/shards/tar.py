"""Read and write one shard: a byte-reproducible WebDataset tar, and its index.

The tar has ``<key>.<payload>`` and ``<key>.cls`` for every record, so any WebDataset pipeline can read it. The index,
``<shard>.index.npz``, has the location of the payload of every record, for random access.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pmf_lightning.data.shards.manifest import ShardEntry
from pmf_lightning.utils.bounded_files import open_npz
from pmf_lightning.utils.cache import atomic_write, to_disk
from pmf_lightning.utils.errors import UserError

MOST_INDEX = 2**29  # largest size in bytes of a column of an index


@dataclass(frozen=True)
class Record:
    """One image: its key, label, and the bytes and extension (such as png, jpg, npy) of its payload."""

    key: str
    label: int
    payload: bytes
    ending: str


@dataclass(frozen=True)
class Index:
    """Index of a shard: ``offsets`` and ``sizes`` of payloads in bytes [n], ``labels`` [n] and ``keys`` [n]."""

    offsets: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    keys: np.ndarray


def index_path(tar: Path) -> Path:
    """Return the path of the index of the shard ``tar``."""
    return tar.with_suffix(".index.npz")


def write_shard(path: Path, records: Iterable[Record]) -> ShardEntry:
    """Write ``records`` to ``path``, and the index next to it; the tar is written atomically, after the index."""
    places, keys = [], []
    with atomic_write(path) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
            for record in records:
                start = _add(tar, f"{record.key}.{record.ending}", record.payload)
                _add(tar, f"{record.key}.cls", str(record.label).encode())
                places.append((start, len(record.payload), record.label))
                keys.append(record.key)
        to_disk(partial)
        columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
        with atomic_write(index_path(path)) as index, index.open("wb") as file:
            np.savez(file, offsets=columns[0], sizes=columns[1], labels=columns[2], keys=np.array(keys, dtype=np.str_))
        entry = ShardEntry(path.name, len(keys), partial.stat().st_size, digest_of(partial))
    return entry


def read_index(tar: Path) -> Index:
    """Read the index of a shard; UserError if it is missing or damaged."""
    path = index_path(tar)
    try:
        with open_npz(path) as stored:
            columns = {name: stored.read(name, MOST_INDEX) for name in ("offsets", "sizes", "labels", "keys")}
        kinds = [column.dtype.kind if name == "keys" else column.dtype.str for name, column in columns.items()]
        if kinds != ["<i8", "<i8", "<i8", "U"] or len({column.shape for column in columns.values()}) > 1:
            raise ValueError("its columns do not match")
        if columns["keys"].ndim != 1:
            raise ValueError("its columns are not one-dimensional")
        return Index(**columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); remove {tar} and run shard again") from error


def digest_of(path: Path) -> str:
    """Return the blake2b hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append one member without time or owner; return the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
