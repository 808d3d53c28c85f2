"""Time functions in turns within one process, and the speed of large matrix products as the peak to compare with."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def milliseconds(step: Callable[[], object]) -> float:
    """Time one call, waiting for an accelerator to finish before and after."""
    _wait()
    start = time.perf_counter()
    step()
    _wait()
    return (time.perf_counter() - start) * 1e3


def time_interleaved(rivals: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return ``repeats`` times of every rival in milliseconds, in turns of changing order, after one unmeasured each.

    Time i of one rival stands beside time i of the others.
    """
    for step in rivals.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(repeats):
        for name in list(rivals) if turn % 2 == 0 else reversed(rivals):
            times[name].append(milliseconds(rivals[name]))
    return times


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return how often ours fits into theirs, turn by turn: the median and the extremes."""
    each = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    return {"ratio": statistics.median(each), "ratio_min": min(each), "ratio_max": max(each)}


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


SIDES = {"cpu": 2048, "cuda": 8192}

PRODUCTS = 10


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations per second of square products, the best of several, in the dtype of the step."""
    side = SIDES.get(device.type, 4096)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = min(milliseconds(lambda: a @ a) for _ in range(PRODUCTS))
    return 2 * side**3 / (best / 1e3)
