"""Table of the locations of all records of a folder of shards, from the manifest and the index of each tar."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pmf_lightning.data.shards.manifest import Manifest, ShardEntry
from pmf_lightning.data.shards.tar import Index, index_path, read_index
from pmf_lightning.utils.errors import UserError

CUT_OFF = "beyond the end of its shard"


class RecordLocation(NamedTuple):
    """Location of a record's payload: index of its shard, offset and size in bytes."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class Records:
    """The records of all shards, in the order of the manifest.

    Those of shard s are ``starts[s]`` to ``starts[s + 1]``. Offsets and sizes are in bytes. Keys are not loaded, since
    they need more memory than all other columns and are only used to name bad records.
    """

    folder: Path
    files: list[str]
    starts: Int64[np.ndarray, " shards_and_one"]
    offsets: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> list[Path]:
        """Paths of the tars."""
        return [self.folder / file for file in self.files]

    def place(self, record: int) -> RecordLocation:
        """Return the location of a record."""
        return RecordLocation(self._shard(record), int(self.offsets[record]), int(self.sizes[record]))

    def describe(self, record: int) -> str:
        """Return a readable name of a record: its key and its shard."""
        shard = self._shard(record)
        key = read_index(self.folder / self.files[shard]).keys[record - self.starts[shard]]
        return f"{key} of {self.folder / self.files[shard]}"

    def _shard(self, record: int) -> int:
        return int(self.starts.searchsorted(record, side="right")) - 1

    def cut_off(self) -> dict[str, int]:
        """Return the number of lost records of each truncated tar."""
        counts = {}
        for shard, file in enumerate(self.files):
            rows = slice(self.starts[shard], self.starts[shard + 1])
            length = (self.folder / file).stat().st_size
            if lost := int((self.offsets[rows] + self.sizes[rows] > length).sum()):
                counts[file] = lost
        return counts


def open_records(folder: Path, manifest: Manifest) -> Records:
    """Read all indexes of ``folder``, without reading tars.

    Raises UserError for a missing tar, a tar longer than in the manifest, and a missing or mismatched index.
    """
    for entry in manifest.shards:
        _check_tar(folder / entry.file, entry)
    found = [_checked_index(folder / entry.file, entry, len(manifest.class_names)) for entry in manifest.shards]
    joined = [np.concatenate([getattr(index, name) for index in found]) for name in ("offsets", "sizes", "labels")]
    starts = np.cumsum([0, *(len(index.labels) for index in found)])
    return Records(folder, [entry.file for entry in manifest.shards], starts, *joined)


def _check_tar(tar: Path, entry: ShardEntry) -> None:
    if not tar.is_file():
        raise UserError(f"{tar} is missing: copy it again, or run the command that made the shards again")
    if tar.stat().st_size > entry.bytes:
        raise UserError(
            f"{tar} has {tar.stat().st_size:,} bytes, {entry.bytes:,} in the manifest: it belongs to other shards; "
            "remove it and run the command that made the shards again"
        )


def _checked_index(tar: Path, entry: ShardEntry, classes: int) -> Index:
    index = read_index(tar)
    columns = (index.offsets, index.sizes, index.labels)
    fits = (
        all(column.shape == (entry.count,) and column.dtype == np.int64 for column in columns)
        and (index.offsets >= 0).all()
        and (index.sizes >= 0).all()
        and (index.offsets <= entry.bytes).all()
        and (index.sizes <= entry.bytes - index.offsets).all()
        and index.keys.shape == (entry.count,)
        and ((index.labels >= 0) & (index.labels < classes)).all()
    )
    if not fits:
        raise UserError(
            f"{index_path(tar)} does not fit the manifest ({entry.count} records, {entry.bytes:,} bytes, {classes} "
            f"classes): remove {tar} and run the command that made the shards again"
        )
    return index
