"""Benchmark a training step: time of its parts, share of the matmul peak, and ratio to the textbook step."""

import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pmf_lightning.objectives.base import Batch
from pmf_lightning.objectives.jit import JiT
from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
from pmf_lightning.objectives.pixel_meanflow import PixelMeanFlow
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.profiling.benchmarks.textbook import textbook_loss
from pmf_lightning.profiling.benchmarks.timing import matmul_flops, milliseconds, ratios, time_interleaved
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

LABELS = ("guidance", "derivative")  # record_function labels inside the objective
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def casting(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context of a Lightning precision: autocast for bf16-mixed and 16-mixed, else nullcontext."""
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


@dataclass(frozen=True)
class StepBench:
    """One micro-batch with network, objective and optimiser: computes our loss, the textbook's, and gradients.

    ``compiled_network`` is the compiled network, or ``network`` itself without compilation.
    """

    network: nn.Module
    compiled_network: Any
    objective: Any
    optimizer: torch.optim.Optimizer
    batch: Batch
    precision: str
    averages: int

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.batch.x.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return HALF.get(self.precision, torch.float32)

    def cast(self) -> AbstractContextManager:
        """Return the autocast context of a training step."""
        return casting(self.device, self.precision)

    def loss(self, step: int = 0) -> Tensor:
        """Return our loss."""
        with self.cast():
            return self.objective(self.compiled_network, self.batch, self.objective.draw(self.batch, 0, step)).total

    def textbook(self, step: int = 0) -> Tensor:
        """Return the textbook's loss with the same draws."""
        with self.cast():
            return textbook_loss(self.objective, self.network, self.batch, self.objective.draw(self.batch, 0, step))[0]

    def gradients(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute the gradients of a loss from zero and return them as one vector."""
        self.network.zero_grad()
        loss().backward()
        found = [weight.grad.flatten() for weight in self.network.parameters() if weight.grad is not None]
        return torch.cat(found)


def make_bench(
    module: GenerativeModule, images: int, device: torch.device, precision: str, compiled: bool, averages: int
) -> StepBench:
    """Build a StepBench with ``images`` random images on a device; raises UserError for other objectives.

    Weights initialised to zero, such as gates, are perturbed: identity blocks would agree trivially.
    """
    if not isinstance(module.objective, PixelMeanFlow | JiT):
        raise UserError("what=step: it knows pMF, iMF and JiT; choose another model")
    network = module.network.to(device)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1 or not weight.any():
                weight += 0.05 * rng.normal("benchmark", name, count=weight.numel()).view_as(weight).to(weight)
    shape = (images, network.channels, network.resolution, network.resolution)
    x = rng.uniform("benchmark", "x", count=math.prod(shape)).float().view(shape) * 2 - 1
    batch = Batch(x.to(device), torch.arange(images, device=device) % network.classes)
    optimizer = module.configure_optimizers()["optimizer"]
    passes = CompiledNetwork(network) if compiled else network
    return StepBench(network, passes, module.objective, optimizer, batch, precision, averages)


def benchmark_step(bench: StepBench, flops: int, repeats: int, against: str | None) -> dict[str, Any]:
    """Time loss and gradients, alone or against "textbook"; return milliseconds, images/s and the share of the peak.

    ``flops`` are the operations of one step; the peak of the device is measured here. Raises UserError if the textbook
    does not have this variant of the step.
    """
    rivals = {"ours": lambda: bench.gradients(bench.loss)}
    compared = {}
    if against == "textbook":
        compared = _compared(bench)
        rivals["textbook"] = lambda: bench.gradients(bench.textbook)
    times = time_interleaved(rivals, repeats)
    ours = statistics.median(times["ours"])
    peak = matmul_flops(bench.device, bench.dtype)
    table = {
        "loss_and_gradients_ms": ours,
        "images_per_second": len(bench.batch.y) / ours * 1e3,
        "gflop": flops / 1e9,
        "matmul_gflop_per_second": peak / 1e9,
        "share_of_matmul_peak": flops / (ours / 1e3) / peak,
        "parts_ms": _parts(bench, repeats),
        "peak_memory_gb": _peak_memory(bench),
    }
    if compared:
        table["textbook"] = {"ms": statistics.median(times["textbook"]), **ratios(times["ours"], times["textbook"])}
        table["textbook"] |= compared
    return table


def _compared(bench: StepBench) -> dict[str, float]:
    """Return the relative differences between the two in losses and gradients."""
    try:
        theirs = bench.gradients(bench.textbook).double()
    except (ValueError, AttributeError) as error:
        raise UserError(f"against=textbook: {error}; take a pMF or iMF with a v-head, and perceptual=none") from error
    ours, drawn = bench.gradients(bench.loss).double(), bench.objective.draw(bench.batch, 0, 0)
    with bench.cast(), torch.no_grad():
        sums = bench.objective(bench.compiled_network, bench.batch, drawn).per_sample
        plain = textbook_loss(bench.objective, bench.network, bench.batch, drawn)[1]
    apart = {f"{name}_difference": _relative(sums[name], plain[name]) for name in plain}
    return {"gradient_difference": _relative(ours, theirs), **apart}


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _parts(bench: StepBench, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each part of a step."""
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=watched, acc_events=True) as seen:
        for _ in range(repeats):
            bench.loss()
    on_gpu = bench.device.type == "cuda"
    named = {event.key: event for event in seen.key_averages() if event.key in LABELS}
    inside = {
        name: (event.device_time_total if on_gpu else event.cpu_time_total) / repeats / 1e3
        for name, event in named.items()
    }
    forward, backward = [], []
    for _ in range(repeats):
        bench.network.zero_grad()
        held: list[Tensor] = []
        forward.append(milliseconds(lambda held=held: held.append(bench.loss())))
        backward.append(milliseconds(lambda held=held: held[0].backward()))
    values = max(0.0, statistics.median(forward) - sum(inside.values()))
    parts = {**inside, "forward": values, "backward": statistics.median(backward)}
    parts["optimizer"] = _median(bench.optimizer.step, repeats)
    return parts | {"averages": _median(_averaging(bench), repeats)}


def _averaging(bench: StepBench) -> Callable[[], None]:
    """Return a function that updates all running averages of the weights once."""
    weights = [weight.detach() for weight in bench.network.parameters()]
    kept = [[weight.float().clone() for weight in weights] for _ in range(bench.averages)]

    def update() -> None:
        for averages in kept:
            torch._foreach_lerp_(averages, weights, 0.001)

    return update


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    return statistics.median(milliseconds(work) for _ in range(repeats))


def _peak_memory(bench: StepBench) -> float | None:
    """Return the peak gigabytes (10^9 bytes) of loss, gradients and optimiser step on a GPU; None on a CPU."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    bench.gradients(bench.loss)
    bench.optimizer.step()
    return torch.cuda.max_memory_allocated() / 1e9


def describe(result: dict[str, Any]) -> str:
    """Format the result of ``benchmark_step`` as text."""
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in result["parts_ms"].items())
    lines = [
        f"{result['model']}, {result['images']} images at once on {result['device']} ({result['precision']}): loss and "
        f"gradients {result['loss_and_gradients_ms']:.0f} ms, {result['images_per_second']:.1f} images/s, "
        f"{result['gflop']:.0f} GFLOP, {result['share_of_matmul_peak']:.0%} of the speed of a large product",
        f"parts in ms: {parts}",
    ]
    if (book := result.get("textbook")) is not None:
        lines.append(
            f"textbook: {book['ms']:.0f} ms, {book['ratio']:.2f}x ({book['ratio_min']:.2f} to {book['ratio_max']:.2f})"
            f"; gradients differ by {book['gradient_difference']:.1e}"
        )
    return "\n".join(lines)
