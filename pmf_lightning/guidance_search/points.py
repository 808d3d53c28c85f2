"""What a guidance search tries: points of averages, guidance scales, intervals, numbers of steps and methods."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import product

from pmf_lightning.precision import Number

Interval = tuple[Number, Number]  # t_min, t_max


@dataclass(frozen=True)
class Point:
    """One way to sample: the average of the weights, guidance ``omega`` within ``interval``, steps, and the method."""

    ema: str
    omega: Number
    interval: Interval
    steps: int
    method: str

    @property
    def options(self) -> dict[str, Number | str]:
        """The options of ``generate``."""
        t_min, t_max = self.interval
        return {"steps": self.steps, "method": self.method, "omega": self.omega, "t_min": t_min, "t_max": t_max}

    @property
    def arguments(self) -> list[str]:
        """The options as a command line takes them."""
        return [f"ema={self.ema}", *(f"{name}={show(value)}" for name, value in self.options.items())]

    def __str__(self) -> str:
        low, high = map(show, self.interval)
        return f"ema {self.ema}, omega {show(self.omega)} in [{low}, {high}], {self.steps} x {self.method}"


@dataclass(frozen=True)
class Axes:
    """The values that are tried; field ``name`` of a Point takes those of the field ``name`` here."""

    ema: tuple[str, ...]
    omega: tuple[Number, ...]
    interval: tuple[Interval, ...]
    steps: tuple[int, ...]
    method: tuple[str, ...]

    def grid(self) -> list[Point]:
        """Return every point; the averages change slowest, since each must be put in place."""
        points = product(self.ema, self.method, self.steps, self.interval, self.omega)
        return [Point(ema, omega, interval, steps, method) for ema, method, steps, interval, omega in points]

    def along(self, name: str, point: Point) -> list[Point]:
        """Return the points that differ from ``point`` in the field ``name`` alone, and ``point`` where it is on it."""
        return [replace(point, **{name: value}) for value in getattr(self, name)]

    def nearest(self, point: Point) -> Point:
        """Return the point of the grid that is nearest to ``point``, each field by itself."""
        chosen = {field.name: _nearest(getattr(self, field.name), getattr(point, field.name)) for field in fields(self)}
        return Point(**chosen)

    def __len__(self) -> int:
        count = 1
        for values in astuple(self):
            count *= len(values)
        return count


def show(value: Number | str) -> str:
    """Return a number as short as it goes."""
    return value if isinstance(value, str) else f"{value:g}"


def _nearest(values: Sequence, wanted):
    if wanted in values or isinstance(wanted, str):
        return wanted if wanted in values else values[0]
    numbers = wanted if isinstance(wanted, tuple) else (wanted,)

    def distance(value) -> float:
        own = value if isinstance(value, tuple) else (value,)
        return float(sum(abs(a - b) for a, b in zip(own, numbers, strict=True)))

    return min(values, key=distance)
