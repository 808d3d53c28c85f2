"""Format numbers over seeds (mean and range) and names of files."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

HIGHER_IS_BETTER = ("class_accuracy", "real_accuracy", "is", "precision", "recall", "images_per_second")


def higher_is_better(key: str) -> bool:
    """Return whether higher values of a key of summary.json are better; by default lower ones are."""
    return key.rpartition(".")[2] in HIGHER_IS_BETTER


@dataclass(frozen=True)
class Spread:
    """Mean, minimum and maximum of one number over the seeds of an arm."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return show(self.mean) if show(self.low) == show(self.high) else f"{show(self.mean)} ({self.span})"

    @property
    def span(self) -> str:
        """Format the range: "2.54", or "1.64 to 2.35" if minimum and maximum differ."""
        return show(self.low) if show(self.low) == show(self.high) else f"{show(self.low)} to {show(self.high)}"

    def overlaps(self, other: "Spread") -> bool:
        """Return whether the two ranges overlap."""
        return max(self.low, other.low) <= min(self.high, other.high)


def spread(values: Sequence[object]) -> Spread | None:
    """Return the spread of the values that are finite numbers, None if there are none."""
    known = [float(value) for value in values if is_number(value)]
    return Spread(math.fsum(known) / len(known), min(known), max(known), len(known)) if known else None


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def show(value: float | int) -> str:
    """Format a number with three significant digits, from 1,000 on without a fraction."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    digits = 3 if value == 0 else 3 - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.3g}"
    return f"{round(value, digits):g}" if "e" in text and abs(value) >= 1e-4 else text


def show_paper(value: float | int) -> str:
    """Format a number of a paper as printed there, without trailing zeros."""
    return f"{value:g}"


def show_time(seconds: float | int) -> str:
    """Format a duration: "45 s", "3.5 min", "2.1 h", "3 d"."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{show(seconds / unit)} {name}"
    return f"{seconds:.0f} s"


def in_words(number: int, one: str, many: str | None = None) -> str:
    """Format a count with its noun: "one arm", "3 arms"."""
    return f"one {one}" if number == 1 else f"{number} {many or one + 's'}"


def slug(text: str) -> str:
    """Turn a text into part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "sweep"


def slugs(texts: Sequence[str]) -> list[str]:
    """Return a unique file name for each text; duplicates get a number."""
    names: list[str] = []
    for text in texts:
        name, number = slug(text), 1
        while name in names:
            number += 1
            name = f"{slug(text)}-{number}"
        names.append(name)
    return names
