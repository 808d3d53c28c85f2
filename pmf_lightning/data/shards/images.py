"""The images of shards by number, each read from its own place when it is asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import default_collate

from pmf_lightning.data.dataset import BatchDataset
from pmf_lightning.data.shards.bad_records import BadRecord, BadRecordCounter
from pmf_lightning.data.shards.open_files import OpenFiles
from pmf_lightning.data.shards.records import CUT_OFF, Records
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Payload:
    """What a record holds: how to decode its bytes, and the shape and type of the array that this must give.

    ``decode`` may raise anything where the bytes are damaged. ``change`` makes of the array of record number i what is
    handed out; None: the array itself.
    """

    decode: Callable[[bytes], np.ndarray]
    shape: tuple[int, ...]
    dtype: torch.dtype
    change: Callable[[Tensor, int], Tensor] | None = None


class ShardImages(BatchDataset):
    """Those of ``records`` that ``rows`` lists, as a data set of ``len(rows)`` images (see ``dataset.ImageDataset``).

    Where record number i of the data set cannot be read, number i + s, i + 2 s, ... modulo their count stands in, with
    its own label, s being a fixed stride: the same one in every process and every run, so that what training sees stays
    a function of its seed; and neighbours that are lost together, as in a truncated shard, get different ones.
    ``tally`` counts those met by ``batch`` and by single items; ``fetch`` hands them to its caller to count.
    """

    def __init__(self, records: Records, rows: Int64[np.ndarray, " n"], payload: Payload, tally: BadRecordCounter):
        self.records, self.rows, self.payload, self.tally = records, rows, payload, tally
        self.labels = torch.from_numpy(records.labels[rows])
        self.stride = _stride(len(rows))
        self._files = OpenFiles(records.paths)

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Int64[Tensor, " b"], list[BadRecord]]:
        """Fetch several: images [B, ...], labels [B], and the bad records met.

        Raises IndexError, and UserError where nothing is found to stand in.
        """
        asked = np.asarray(indices, dtype=np.int64)
        if len(asked) and not (-len(self) <= asked.min() <= asked.max() < len(self)):
            raise IndexError(f"images {asked.min()} to {asked.max()} of {len(self)}")
        asked = asked % max(1, len(self))
        self._files.announce(self.records.place(int(record)) for record in self.rows[asked])
        images, found, bad = [torch.empty(0)] * len(asked), np.empty_like(asked), []
        for position in self.rows[asked].argsort(kind="stable").tolist():  # as they lie on disk
            images[position], found[position] = self._read_from(int(asked[position]), bad)
        return self._stacked(images), self.labels[torch.from_numpy(found)], bad

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Int64[Tensor, " b"]]:
        """Fetch several: images [B, ...] and labels [B]; UserError where too many records cannot be read."""
        images, labels, bad = self.fetch(indices)
        self.tally.note(bad, len(labels))
        return images, labels

    def _stacked(self, images: list[Tensor]) -> Tensor:
        """Put images together; in a loading process in memory that the main process sees, which saves it a copy."""
        return default_collate(images) if images else torch.empty(0, *self.payload.shape, dtype=self.payload.dtype)

    def _read_from(self, first: int, bad: list[BadRecord]) -> tuple[Tensor, int]:
        """Return image ``first``, or what stands in for it, and the number of this one; add to ``bad``."""
        attempts = min(len(self), self.tally.most + 2)  # by then it is plain that they are too many
        for attempt in range(attempts):
            index = (first + attempt * self.stride) % len(self)
            record = int(self.rows[index])
            try:
                return self._read(record), index
            except MemoryError:
                raise
            except Exception as error:  # damaged payloads make decoders raise nearly anything
                bad.append(BadRecord(record, " ".join(str(error).split()) or type(error).__name__))
        last = bad[-1]
        raise UserError(
            f"{attempts} records, of which each would stand in for the one before it, cannot be read, the last of them "
            f"{self.records.describe(last.record)} ({last.reason}); {self.tally.remedy}"
        )

    def _read(self, record: int) -> Tensor:
        place = self.records.place(record)
        content = self._files.read(*place)
        if len(content) < place.size:
            raise ValueError(CUT_OFF)
        image = torch.from_numpy(self.payload.decode(content))
        if (tuple(image.shape), image.dtype) != (self.payload.shape, self.payload.dtype):
            raise ValueError(f"{image.dtype} {list(image.shape)} instead of {list(self.payload.shape)}")
        return image if self.payload.change is None else self.payload.change(image, record)


def _stride(count: int) -> int:
    """Return a number near the golden section of ``count`` that shares no factor with it, so that all are reached."""
    stride = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride
