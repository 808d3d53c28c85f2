"""Records that cannot be read: counted, named once, and fatal when they are too many."""

import math
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from pmf_lightning.data.shards.records import CUT_OFF
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

MOST_NAMED = 20


class BadRecord(NamedTuple):
    """A record that could not be read, and why."""

    record: int
    reason: str


class BadRecordCounter:
    """Counts the bad records that a process met, and stops where they are more than ``max_bad`` of those it read.

    Args:
        records: how many the whole set has.
        max_bad: fraction that is borne. It is taken of what this process has read by now, but never of less than its
            part of one epoch, so that a few in the first batch are no reason to stop.
        describe: names a record for people.
        remedy: what to do about them; ends the error.
        processes: how many share an epoch.
    """

    def __init__(
        self, records: int, max_bad: Number, describe: Callable[[int], str], remedy: str, processes: int = 1
    ) -> None:
        self.records, self.max_bad, self.describe, self.remedy = records, max_bad, describe, remedy
        self.part = records / processes
        self.read = self.count = 0
        self._met: set[int] = set()

    @property
    def different(self) -> int:
        """Bad records met, each counted once; ``count`` counts one again whenever it is met."""
        return len(self._met)

    @property
    def most(self) -> int:
        """How many bad records the whole set may have."""
        return math.ceil(self.max_bad * self.records)

    def afresh(self, processes: int) -> "Tally":
        """Return a count that begins anew, for one of so many processes that share an epoch."""
        return BadRecordCounter(self.records, self.max_bad, self.describe, self.remedy, processes)

    def note(self, bad: list[BadRecord] | UserError, read: int) -> None:
        """Count ``bad`` among ``read`` records, and name those met for the first time.

        Raises UserError where they are too many, or what a loading process sent instead of them.
        """
        if isinstance(bad, UserError):
            raise bad
        self.read += read
        for record, reason in bad:
            self.count += 1
            if record not in self._met:
                self._met.add(record)
                self._name(record, reason)
        if bad and self.count > math.ceil(self.max_bad * max(self.read, self.part)):
            raise UserError(
                f"{self.different} of {self.records} records cannot be read so far, among them "
                f"{self.describe(bad[-1].record)} ({bad[-1].reason}): more than data.max_bad={self.max_bad} of what "
                f"was read; {self.remedy}"
            )

    def report(self) -> None:
        """Print how many different records could not be read, if any."""
        if self.different:
            what = f"{self.different} of {self.records} records could not be read, and others stood in"
            tqdm.write(f"warning: {what}; {self.remedy}")

    def _name(self, record: int, reason: str) -> None:
        if reason == CUT_OFF or self.different > MOST_NAMED:  # truncated shards are named when they are opened
            return
        last = ", and from here on only counts" if self.different == MOST_NAMED else ""
        tqdm.write(f"warning: cannot read {self.describe(record)} ({reason}); another stands in{last}")
