"""Time functions in turns within one process, and measure the matmul peak of a device."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def milliseconds(step: Callable[[], object]) -> float:
    """Time one call, with the accelerator synchronised before and after."""
    _wait()
    start = time.perf_counter()
    step()
    _wait()
    return (time.perf_counter() - start) * 1e3


def on_processor(step: Callable[[], object], times: list[float]) -> Callable[[], None]:
    """Return ``step`` as a function that appends its processor time in milliseconds, over all threads, to ``times``.

    On one thread another program changes this time far less than that of the clock.
    """

    def counted() -> None:
        start = time.process_time()
        step()
        times.append((time.process_time() - start) * 1e3)

    return counted


def time_interleaved(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return ``repeats`` times of every function in milliseconds, in turns of alternating order, after one warm-up.

    Time i of each function is from turn i.
    """
    for step in candidates.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats):
        for name in list(candidates) if turn % 2 == 0 else reversed(candidates):
            times[name].append(milliseconds(candidates[name]))
    return times


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the ratio of their time to ours, turn by turn: median, minimum and maximum."""
    each = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    return {"ratio": statistics.median(each), "ratio_min": min(each), "ratio_max": max(each)}


def compare(ours: list[float], theirs: list[float], name: str) -> dict[str, float]:
    """Return the medians "ours_ms" and "<name>_ms", and the ``ratios``, of the times of two sides that took turns."""
    return {"ours_ms": statistics.median(ours), f"{name}_ms": statistics.median(theirs), **ratios(ours, theirs)}


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


SIDES = {"cpu": 2048, "cuda": 8192}

PRODUCTS = 10


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of square matrix products in ``dtype``, the best of several."""
    side = SIDES.get(device.type, 4096)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = min(milliseconds(lambda: a @ a) for _ in range(PRODUCTS))
    return 2 * side**3 / (best / 1e3)
