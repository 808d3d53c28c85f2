"""Format numbers over seeds (mean and range) and names of files."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

HIGHER_IS_BETTER = ("class_accuracy", "real_accuracy", "is", "precision", "recall", "images_per_second")


def higher_is_better(key: str) -> bool:
    """Tell whether large values of a key of summary.json are good; distances and losses are the rule."""
    return key.rpartition(".")[2] in HIGHER_IS_BETTER


@dataclass(frozen=True)
class Spread:
    """Mean, least and largest of one number over the seeds of an arm."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return show(self.mean) if show(self.low) == show(self.high) else f"{show(self.mean)} ({self.span})"

    @property
    def span(self) -> str:
        """Write "2.54", or "1.64 to 2.35" where least and largest differ."""
        return show(self.low) if show(self.low) == show(self.high) else f"{show(self.low)} to {show(self.high)}"

    def meets(self, other: "Spread") -> bool:
        """Tell whether the two ranges share a point."""
        return max(self.low, other.low) <= min(self.high, other.high)


def spread(values: Sequence[object]) -> Spread | None:
    """Return the spread of those values that are finite numbers; None where there is none."""
    known = [float(value) for value in values if is_number(value)]
    return Spread(math.fsum(known) / len(known), min(known), max(known), len(known)) if known else None


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def show(value: float | int) -> str:
    """Write a number in three digits that count; from 1,000 on without a fraction."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    digits = 3 if value == 0 else 3 - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.3g}"
    return f"{round(value, digits):g}" if "e" in text and abs(value) >= 1e-4 else text


def show_paper(value: float | int) -> str:
    """Write a number of a paper as the paper does, but for zeros at the end."""
    return f"{value:g}"


def show_time(seconds: float | int) -> str:
    """Write a duration: "45 s", "3.5 min", "2.1 h", "3 d"."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{show(seconds / unit)} {name}"
    return f"{seconds:.0f} s"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write "one arm", "3 arms"."""
    return f"one {one}" if number == 1 else f"{number} {many or one + 's'}"


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "sweep"


def slugs(texts: Sequence[str]) -> list[str]:
    """Return a different name for each text: what makes the same one gets a number."""
    names: list[str] = []
    for text in texts:
        name, number = slug(text), 1
        while name in names:
            number += 1
            name = f"{slug(text)}-{number}"
        names.append(name)
    return names
