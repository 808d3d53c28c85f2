"""Dataset of the images of shards, with random access by index."""

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
class RecordFormat:
    """Content of a record: decoder of its bytes, and the expected shape and dtype of the array.

    ``decode`` may raise any exception for damaged bytes. ``change`` transforms the array of record i; None: no
    transform.
    """

    decode: Callable[[bytes], np.ndarray]
    shape: tuple[int, ...]
    dtype: torch.dtype
    change: Callable[[Tensor, int], Tensor] | None = None


class ShardImages(BatchDataset):
    """Dataset of the ``records`` listed in ``rows``, ``len(rows)`` images (see ``dataset.ImageDataset``).

    If record i of the dataset is unreadable, it is replaced by record i + s, i + 2 s, ... modulo their count, with the
    label of the replacement. The stride s is the same in every process and every run, so the training data remain a
    function of the seed. Adjacent lost records, as in a truncated shard, get different replacements. ``tally`` counts
    the bad records of ``batch`` and of single items; ``fetch`` returns them to its caller instead.
    """

    def __init__(
        self, records: Records, rows: Int64[np.ndarray, " n"], record_format: RecordFormat, tally: BadRecordCounter
    ):
        self.records, self.rows, self.format, self.tally = records, rows, record_format, tally
        self.labels = torch.from_numpy(records.labels[rows])
        self.stride = _stride(len(rows))
        self._files = OpenFiles(records.paths)

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> "ShardImages":
        """Return the first ``count`` images, or all; replacements of unreadable ones are among them too."""
        return ShardImages(self.records, self.rows[:count], self.format, self.tally)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Int64[Tensor, " b"], list[BadRecord]]:
        """Return images [B, ...], labels [B], and the bad records.

        Raises IndexError, and UserError if no replacement is readable.
        """
        requested = np.asarray(indices, dtype=np.int64)
        if len(requested) and not (-len(self) <= requested.min() <= requested.max() < len(self)):
            raise IndexError(f"images {requested.min()} to {requested.max()} of {len(self)}")
        requested = requested % max(1, len(self))
        self._files.announce(self.records.place(int(record)) for record in self.rows[requested])
        images, found, bad = [torch.empty(0)] * len(requested), np.empty_like(requested), []
        for position in self.rows[requested].argsort(kind="stable").tolist():  # in disk order
            images[position], found[position] = self._read_from(int(requested[position]), bad)
        return self._stacked(images), self.labels[torch.from_numpy(found)], bad

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Int64[Tensor, " b"]]:
        """Return images [B, ...] and labels [B]; UserError if too many records are unreadable."""
        images, labels, bad = self.fetch(indices)
        self.tally.note(bad, len(labels))
        return images, labels

    def _stacked(self, images: list[Tensor]) -> Tensor:
        """Stack images; in a worker, default_collate uses shared memory, which saves the main process a copy."""
        return default_collate(images) if images else torch.empty(0, *self.format.shape, dtype=self.format.dtype)

    def _read_from(self, first: int, bad: list[BadRecord]) -> tuple[Tensor, int]:
        """Return image ``first`` or its replacement, with its index; append bad records to ``bad``."""
        attempts = min(len(self), self.tally.most + 2)  # more bad records than this are an error anyway
        for attempt in range(attempts):
            index = (first + attempt * self.stride) % len(self)
            record = int(self.rows[index])
            try:
                return self._read(record), index
            except MemoryError:
                raise
            except Exception as error:  # decoders raise many exceptions for damaged payloads
                bad.append(BadRecord(record, " ".join(str(error).split()) or type(error).__name__))
        last = bad[-1]
        raise UserError(
            f"{attempts} records in a row, each the replacement of the one before it, cannot be read, the last is "
            f"{self.records.describe(last.record)} ({last.reason}); {self.tally.remedy}"
        )

    def _read(self, record: int) -> Tensor:
        place = self.records.place(record)
        content = self._files.read(*place)
        if len(content) < place.size:
            raise ValueError(CUT_OFF)
        image = torch.from_numpy(self.format.decode(content))
        if (tuple(image.shape), image.dtype) != (self.format.shape, self.format.dtype):
            raise ValueError(f"{image.dtype} {list(image.shape)} instead of {list(self.format.shape)}")
        return image if self.format.change is None else self.format.change(image, record)


def _stride(count: int) -> int:
    """Return a stride near the golden section of ``count`` and coprime to it, so that all indices are reached."""
    stride = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride
