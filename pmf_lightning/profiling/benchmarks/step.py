"""Benchmark a training step: time of its parts, share of the matmul peak, and ratio to the textbook step."""

import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pmf_lightning.objectives.base import AnyBatch, Objective
from pmf_lightning.objectives.jvp.compiled import CompiledNetwork
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.profiling.benchmarks.roofline import describe_operations, operations
from pmf_lightning.profiling.benchmarks.timing import matmul_flops, milliseconds, ratios, time_interleaved
from pmf_lightning.profiling.step_memory import RealCounts, dummy_batch, images_of
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def casting(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context of a Lightning precision: autocast for bf16-mixed and 16-mixed, else nullcontext."""
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


@dataclass(frozen=True)
class StepBench:
    """One micro-batch with network, objective and optimiser: computes our loss, the textbook's, and gradients.

    ``compiled_network`` is the compiled network, or ``network`` itself without compilation. ``objective`` and
    ``encoders`` are those of ``Objective.counted``: large encoders are left out.
    """

    network: nn.Module
    compiled_network: Any
    objective: Objective
    encoders: Any
    optimizer: torch.optim.Optimizer
    batch: AnyBatch
    precision: str
    averages: int

    @property
    def device(self) -> torch.device:
        """The device of the batch."""
        return self.batch.y.device

    @property
    def images(self) -> int:
        """The number of images that the network processes or generates."""
        return images_of(self.objective, self.batch)

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
            draws = self.objective.draw(self.batch, 0, step)
            return self.objective(self.compiled_network, self.batch, draws, self.encoders).total

    def backward(self, step: int = 0) -> None:
        """Compute the gradients of our loss from zero, as training does."""
        self.network.zero_grad()
        self.loss(step).backward()

    def textbook(self, step: int = 0) -> Tensor:
        """Return the textbook's loss with the same draws."""
        with self.cast():
            draws = self.objective.draw(self.batch, 0, step)
            return self.objective.textbook_loss(self.network, self.batch, draws)[0]

    def gradients(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute the gradients of a loss from zero and return them as one vector."""
        self.network.zero_grad()
        loss().backward()
        found = [weight.grad.flatten() for weight in self.network.parameters() if weight.grad is not None]
        return torch.cat(found)


def make_bench(
    module: GenerativeModule,
    images: int,
    device: torch.device,
    precision: str,
    compiled: bool,
    averages: int,
    real_counts: RealCounts = (1, 0),
) -> StepBench:
    """Build a StepBench with ``images`` random images on a device; raises UserError if it makes no images.

    ``real_counts`` are the positives and negatives per label, for class queues. Weights initialised to zero, such as
    gates, are perturbed: identity blocks would agree trivially.
    """
    if not module.objective.samplers:
        raise UserError("what=step: it measures models that generate images; choose another model")
    network = module.network.to(device)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1 or not weight.any():
                weight += 0.05 * rng.normal("benchmark", name, count=weight.numel()).view_as(weight).to(weight)
    objective, encoders = module.objective.counted()
    batch = _random_batch(network, objective, images, real_counts, device)
    optimizer = module.configure_optimizers()["optimizer"]
    passes = CompiledNetwork(network) if compiled else network
    return StepBench(network, passes, objective, encoders, optimizer, batch, precision, averages)


def _random_batch(
    network: nn.Module, objective: Objective, images: int, real_counts: RealCounts, device: torch.device
) -> AnyBatch:
    """Return a batch of uniform pixels in [-1, 1], with labels that cycle over the classes."""
    small, side = dummy_batch(objective, images, real_counts), network.resolution
    found: dict[str, Any] = {"y": torch.arange(len(small.y), device=device) % network.classes}
    for name, value in vars(small).items():
        if isinstance(value, Tensor) and name != "y":
            shape = (*value.shape[:-3], network.channels, side, side)
            uniform = rng.uniform("benchmark", name, count=math.prod(shape))
            found[name] = (uniform.float().view(shape) * 2 - 1).to(device)
    if objective.data == "labels":
        found["shape"] = (network.channels, side, side)
    return replace(small, **found)


def benchmark_step(bench: StepBench, flops: int, repeats: int, against: str | None) -> dict[str, Any]:
    """Time loss and gradients, alone or against "textbook"; return milliseconds, images/s and the share of the peak.

    ``flops`` are the operations of one step; the peak of the device is measured here. Raises UserError if the textbook
    does not have this variant of the step.
    """
    candidates = {"ours": lambda: bench.gradients(bench.loss)}
    compared = {}
    if against == "textbook":
        compared = _compared(bench)
        candidates["textbook"] = lambda: bench.gradients(bench.textbook)
    times = time_interleaved(candidates, repeats)
    ours = statistics.median(times["ours"])
    peak = matmul_flops(bench.device, bench.dtype)
    table = {
        "loss_and_gradients_ms": ours,
        "images_per_second": bench.images / ours * 1e3,
        "gflop": flops / 1e9,
        "matmul_gflop_per_second": peak / 1e9,
        "share_of_matmul_peak": flops / (ours / 1e3) / peak,
        "parts_ms": _parts(bench, repeats),
        "operations": operations(lambda: bench.gradients(bench.loss), bench.device, peak),
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
        raise UserError(f"against=textbook: {error}") from error
    ours, drawn = bench.gradients(bench.loss).double(), bench.objective.draw(bench.batch, 0, 0)
    with bench.cast(), torch.no_grad():
        sums = bench.objective(bench.compiled_network, bench.batch, drawn, bench.encoders).per_sample
        plain = bench.objective.textbook_loss(bench.network, bench.batch, drawn)[1]
    differences = {f"{name}_difference": _relative(sums[name], plain[name]) for name in plain}
    return {"gradient_difference": _relative(ours, theirs), **differences}


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _parts(bench: StepBench, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each part of a step."""
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=watched, acc_events=True) as seen:
        for _ in range(repeats):
            bench.loss()
    on_gpu, labels = bench.device.type == "cuda", bench.objective.describe().timed
    named = {event.key: event for event in seen.key_averages() if event.key in labels}
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
    return parts | {"averages": _median(averaging(bench), repeats)}


def averaging(bench: StepBench) -> Callable[[], None]:
    """Allocate the running averages of the weights; return a function that updates all of them once."""
    weights = [weight.detach() for weight in bench.network.parameters()]
    stored = [[weight.float().clone() for weight in weights] for _ in range(bench.averages)]

    def update() -> None:
        for averages in stored:
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
    bench.backward()
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
        describe_operations(result["operations"]),
    ]
    if (book := result.get("textbook")) is not None:
        lines.append(
            f"textbook: {book['ms']:.0f} ms, {book['ratio']:.2f}x ({book['ratio_min']:.2f} to {book['ratio_max']:.2f})"
            f"; gradients differ by {book['gradient_difference']:.1e}"
        )
    return "\n".join(lines)
