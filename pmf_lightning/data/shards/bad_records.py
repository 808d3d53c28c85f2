"""Counter of unreadable records: each is reported once, and too many are an error."""

import math
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from pmf_lightning.data.shards.records import CUT_OFF
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

MOST_NAMED = 20


class BadRecord(NamedTuple):
    """An unreadable record, and the reason."""

    record: int
    reason: str


class BadRecordCounter:
    """Counts the bad records of a process, and raises if they exceed a fraction ``max_bad`` of the records read.

    Args:
        records: number of records in the full dataset.
        max_bad: tolerated fraction of the records that this process has read so far, or of its part of one epoch if
            that is more. A few bad records in the first batch are therefore no error.
        describe: returns a readable name of a record.
        remedy: text at the end of the error message.
        processes: number of processes that share an epoch.
    """

    def __init__(
        self, records: int, max_bad: Number, describe: Callable[[int], str], remedy: str, processes: int = 1
    ) -> None:
        self.records, self.max_bad, self.describe, self.remedy = records, max_bad, describe, remedy
        self.part = records / processes
        self.read = self.count = 0
        self._seen: set[int] = set()

    @property
    def different(self) -> int:
        """Number of distinct bad records; ``count`` includes repetitions."""
        return len(self._seen)

    @property
    def most(self) -> int:
        """Tolerated number of bad records in the full dataset."""
        return math.ceil(self.max_bad * self.records)

    def new_counter(self, processes: int) -> "BadRecordCounter":
        """Return a new counter at zero, for one of ``processes`` that share an epoch."""
        return BadRecordCounter(self.records, self.max_bad, self.describe, self.remedy, processes)

    def note(self, bad: list[BadRecord] | UserError, read: int) -> None:
        """Count ``bad`` among ``read`` records, and report new ones.

        Raises UserError if there are too many, or the UserError that a worker returned instead of bad records.
        """
        if isinstance(bad, UserError):
            raise bad
        self.read += read
        for record, reason in bad:
            self.count += 1
            if record not in self._seen:
                self._seen.add(record)
                self._warn(record, reason)
        if bad and self.count > math.ceil(self.max_bad * max(self.read, self.part)):
            raise UserError(
                f"{self.different} of {self.records} records cannot be read so far, among them "
                f"{self.describe(bad[-1].record)} ({bad[-1].reason}): more than data.max_bad={self.max_bad} of the "
                f"records read; {self.remedy}"
            )

    def report(self) -> None:
        """Print the number of distinct unreadable records, if any."""
        if self.different:
            what = f"{self.different} of {self.records} records could not be read, and were replaced by others"
            tqdm.write(f"warning: {what}; {self.remedy}")

    def _warn(self, record: int, reason: str) -> None:
        if reason == CUT_OFF or self.different > MOST_NAMED:  # truncated shards are reported when they are opened
            return
        last = "; further ones are only counted" if self.different == MOST_NAMED else ""
        tqdm.write(f"warning: cannot read {self.describe(record)} ({reason}); it is replaced by another{last}")
