"""Benchmark sampling: time per batch, images per second, and the share of the device's matmul peak."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.profiling import model_cost
from pmf_lightning.profiling.benchmarks.step import HALF, casting
from pmf_lightning.profiling.benchmarks.timing import matmul_flops, time_interleaved
from pmf_lightning.sampling.generate import generate, image_noise, network_evaluations, noise_shape
from pmf_lightning.utils.counted import counted


def benchmark_sampling(
    module: GenerativeModule, batches: Sequence[int], repeats: int, precision: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Time ``generate`` with ``options`` for each batch size, without drawing noise and without decoding latents.

    Returns for each size "ms", "images_per_second" and "share_of_matmul_peak"; the peak is measured here, at the same
    precision. The multiply-adds of one network evaluation come from ``model_cost.count``.
    """
    evaluations = network_evaluations(module.objective, **options)
    flops = 2 * model_cost.count(module.network).multiply_adds * evaluations
    samplers = {size: make_sampler(module, size, precision, options) for size in batches}
    # One size after the other, as in real sampling: in turns, each size would find the allocator state of another.
    times = {str(size): time_interleaved({"ours": work}, repeats)["ours"] for size, work in samplers.items()}
    peak = matmul_flops(module.device, HALF.get(precision, torch.float32))
    table = {}
    for size, each in times.items():
        seconds = statistics.median(each) / 1e3
        table[size] = {
            "ms": 1e3 * seconds,
            "images_per_second": int(size) / seconds,
            "share_of_matmul_peak": int(size) * flops / seconds / peak,
        }
    return {"nfe": evaluations, "gflop_per_image": flops / 1e9, "matmul_gflop_per_second": peak / 1e9, "batches": table}


def make_sampler(module: GenerativeModule, size: int, precision: str, options: dict[str, Any]) -> Callable[[], None]:
    """Return a function that samples ``size`` images with ``options`` of ``generate``; the noise is drawn here."""
    network, device = module.network, module.device
    noise = (module.objective.noise_scale * image_noise(0, 0, size, noise_shape(network))).to(device)
    labels = torch.arange(size, device=device) % network.classes
    conditions = module.objective.sampling_conditions(0, 0, size)

    def sample() -> None:
        with torch.inference_mode(), casting(device, precision):
            generate(module, noise, labels, **options, conditions=conditions)

    return sample


def describe_sampling(result: dict[str, Any]) -> str:
    """Format the result of ``benchmark_sampling`` as text."""
    evaluations = counted(result["nfe"], "evaluation")
    lines = [f"{result['model']} on {result['device']}, {evaluations} of the network per image"]
    for size, found in result["batches"].items():
        lines.append(
            f"batch {size}: {found['ms']:.1f} ms, {found['images_per_second']:.1f} images/s, "
            f"{found['share_of_matmul_peak']:.0%} of the speed of a large product"
        )
    return "\n".join(lines)
