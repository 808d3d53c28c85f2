"""Benchmark how the time of loss and gradients grows with the batch, the resolution, the tokens and the network."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from pmf_lightning.profiling.benchmarks.step import StepBench
from pmf_lightning.profiling.benchmarks.timing import milliseconds, on_processor

TRIES = 2  # runs of each step, of which the shorter counts: another program may disturb one


def benchmark_growth(
    make: Callable[[Any], StepBench], curves: Mapping[str, Sequence[Any]], repeats: int
) -> dict[str, Any]:
    """Time ``make(change)`` for every change of every curve.

    Returns under "curves", for each curve, a list with one entry per change: ``images``, ``resolution``, ``tokens``,
    ``parameters`` (trained weights), ``ms`` and ``processor_ms`` (of all threads), means over ``repeats`` steps with
    draws of their own, since the work of a step depends on them.
    """
    found = {
        name: [_point(make(change), repeats) for change in tqdm(changes, name, leave=False)]
        for name, changes in curves.items()
    }
    return {"curves": found}


def _point(bench: StepBench, repeats: int) -> dict[str, int | float]:
    network = bench.network
    bench.backward()
    times, processor = [], []
    for step in range(repeats):
        each: list[float] = []
        work = on_processor(partial(bench.backward, step), each)
        times.append(min(milliseconds(work) for _ in range(TRIES)))
        processor.append(min(each))
    return {
        "images": bench.images,
        "resolution": network.resolution,
        "tokens": network.prefix + network.grid**2,
        "parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
        "ms": statistics.mean(times),
        "processor_ms": statistics.mean(processor),
    }


X = {"batch": "images", "resolution": "resolution", "tokens": "tokens", "size": "parameters"}  # curve -> what grows


def describe_growth(result: dict[str, Any]) -> str:
    """Format the result of ``benchmark_growth`` as one line per curve."""
    return "\n".join(
        f"{name}: " + ", ".join(f"{X[name]} {point[X[name]]:,} {point['ms']:,.0f} ms" for point in points)
        for name, points in result["curves"].items()
    )
