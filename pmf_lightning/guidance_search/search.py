"""The search itself: few images at many points, then many at the best one, and beside it without guidance."""

import math
from dataclasses import replace

from tqdm.auto import tqdm

from pmf_lightning.cache import digest
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.ranks import rank_and_world
from pmf_lightning.evaluation.references import Reference
from pmf_lightning.guidance_search.measure import Bench
from pmf_lightning.guidance_search.points import Axes, Point
from pmf_lightning.guidance_search.records import Record
from pmf_lightning.guidance_search.space import judged_point
from pmf_lightning.guidance_search.strategy import search_by


def try_all(
    bench: Bench, axes: Axes, strategy: str, n: int, evaluator: Evaluator
) -> tuple[Record | None, list[Record]]:
    """Measure points of ``n`` images by the strategy: the best record, and all of them in the order of the grid.

    There is no best one where no point has finite images. All ranks call it together.
    """
    few = evaluator.of_moments()
    seen: dict[Point, Record] = {}
    bar = tqdm(total=len(axes), desc="points", unit="point", disable=rank_and_world()[0] > 0)

    def number(point: Point) -> float | None:
        if point not in seen:
            seen[point] = bench.measure(point, n, few, "distance")
            bar.update()
            best = min(seen.values(), key=lambda record: math.inf if record.fid is None else record.fid)
            if best.fid is not None:
                bar.set_postfix_str(f"best {best.fid:.4g} at {best.point}")
        return seen[point].fid

    with bar:
        best = search_by(strategy, axes, judged_point(bench.module, axes), number)
    return best and seen[best], [seen[point] for point in axes.grid() if point in seen]


def measure_last(bench: Bench, best: Point, n: int, evaluator: Evaluator) -> dict[str, Record]:
    """Measure the best point with ``n`` images and all scores ("final"), and the same "unguided"."""
    points, what = {"final": best, "unguided": replace(best, omega=1)}, _all_scores(evaluator.reference)
    return {name: bench.measure(point, n, evaluator, what) for name, point in points.items()}


def _all_scores(reference: Reference) -> str:
    """Say what is measured: some scores compare with features of real images, which moments do not tell apart."""
    compared = reference.images if reference.features is None else reference.features
    return "all scores" if compared is None else f"all scores, beside {digest(compared.numpy().tobytes().hex())}"
