"""In which order points are measured: all of a grid, or one axis after the other."""

import math
from collections.abc import Callable

from pmf_lightning.guidance_search.points import Axes, Point

STRATEGIES = ("grid", "coordinate")
COORDINATES = ("omega", "interval", "ema", "steps", "method")

Measure = Callable[[Point], float | None]  # the number to minimise; None: there is none, such as after a collapse


def search_by(strategy: str, axes: Axes, start: Point, measure: Measure) -> Point | None:
    """Return the best point by ``strategy``, "grid" or "coordinate"; None where no point has a number.

    "coordinate" starts from ``start`` and keeps what is best along each axis in turn, round after round until a round
    changes nothing: a few times fewer points than a grid, and its answer may be a local one. ``measure`` is asked for
    the same point more than once.
    """
    return best_of(axes.grid(), measure) if strategy == "grid" else _coordinate(axes, start, measure)


def best_of(points: list[Point], measure: Measure) -> Point | None:
    """Return the point with the lowest number, the first of equals; every point is measured."""
    numbers = [(math.inf if (number := measure(point)) is None else number, i) for i, point in enumerate(points)]
    lowest, place = min(numbers, default=(math.inf, 0))
    return points[place] if lowest < math.inf else None


def _coordinate(axes: Axes, start: Point, measure: Measure) -> Point | None:
    best, found = start, measure(start)
    while True:
        before = best
        for name in COORDINATES:
            candidate = best_of(axes.along(name, best), measure)
            number = None if candidate is None else measure(candidate)
            if number is not None and (found is None or number < found):  # equals change nothing, so that it ends
                best, found = candidate, number
        if best == before:
            return best if found is not None else None
