"""Guidance search: few images at many settings, then many images at the best one and without guidance."""

import math
from collections.abc import Callable
from dataclasses import replace

from tqdm.auto import tqdm

from pmf_lightning.distributed.collectives import rank_and_world
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.guidance_search.measure import PointEvaluator
from pmf_lightning.evaluation.guidance_search.records import Record
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting, SearchSpace, default_point
from pmf_lightning.evaluation.references import Reference
from pmf_lightning.utils.cache import digest

STRATEGIES = ("grid", "coordinate")

COORDINATES = ("omega", "interval", "ema", "steps", "sampler")

Measure = Callable[
    [SamplingSetting], float | None
]  # the number to minimise; None if it is undefined, for example after divergence


def search_by(strategy: str, axes: SearchSpace, start: SamplingSetting, measure: Measure) -> SamplingSetting | None:
    """Return the best point by ``strategy``, "grid" or "coordinate"; None if no point has a number.

    "coordinate" is coordinate descent: it starts at ``start`` and minimises along each axis in turn until a round
    changes nothing. It measures several times fewer points than a grid, but may find a local minimum. ``measure`` may
    be called for the same point more than once.
    """
    return best_of(axes.grid(), measure) if strategy == "grid" else _coordinate(axes, start, measure)


def best_of(points: list[SamplingSetting], measure: Measure) -> SamplingSetting | None:
    """Measure every point and return the one with the lowest number, the first if several are equal."""
    numbers = [(math.inf if (number := measure(point)) is None else number, i) for i, point in enumerate(points)]
    lowest, place = min(numbers, default=(math.inf, 0))
    return points[place] if lowest < math.inf else None


def _coordinate(axes: SearchSpace, start: SamplingSetting, measure: Measure) -> SamplingSetting | None:
    best, found = start, measure(start)
    while True:
        before = best
        for name in COORDINATES:
            candidate = best_of(axes.along(name, best), measure)
            number = None if candidate is None else measure(candidate)
            if number is not None and (found is None or number < found):  # strictly less, so that it terminates
                best, found = candidate, number
        if best == before:
            return best if found is not None else None


def try_all(
    measurer: PointEvaluator, axes: SearchSpace, strategy: str, n: int, evaluator: Evaluator
) -> tuple[Record | None, list[Record]]:
    """Search with ``n`` images per point; return the best record, and all records in grid order.

    The best is None if no point has finite images. All ranks must call it.
    """
    distance_only = evaluator.without_features()
    measured: dict[SamplingSetting, Record] = {}
    bar = tqdm(total=len(axes), desc="points", unit="point", disable=rank_and_world()[0] > 0)

    def number(point: SamplingSetting) -> float | None:
        if point not in measured:
            measured[point] = measurer.measure(point, n, distance_only, "distance")
            bar.update()
            best = min(measured.values(), key=lambda record: math.inf if record.fid is None else record.fid)
            if best.fid is not None:
                bar.set_postfix_str(f"best {best.fid:.4g} at {best.point}")
        return measured[point].fid

    with bar:
        best = search_by(strategy, axes, default_point(measurer.module, axes), number)
    return best and measured[best], [measured[point] for point in axes.grid() if point in measured]


def measure_last(measurer: PointEvaluator, best: SamplingSetting, n: int, evaluator: Evaluator) -> dict[str, Record]:
    """Measure all scores of ``n`` images at the best point ("final"), and at omega=1 ("unguided")."""
    points, what = {"final": best, "unguided": replace(best, omega=1)}, _all_scores(evaluator.reference)
    return {name: measurer.measure(point, n, evaluator, what) for name, point in points.items()}


def _all_scores(reference: Reference) -> str:
    """Return a text for all scores, with a hash of the real features: the reference's moments do not identify them."""
    compared = reference.images if reference.features is None else reference.features
    return "all scores" if compared is None else f"all scores, beside {digest(compared.numpy().tobytes().hex())}"
