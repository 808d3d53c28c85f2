"""An estimate, on paper, of step time and communication on many GPUs: counts that are exact over speeds assumed.

Exact are the operations of a training step and of Newton-Schulz, as this package runs and deals them, and the bytes
that DDP or FSDP2 exchange for them. Assumed (conf/cluster) are the share of the peak that arithmetic reaches, and the
links. Collectives go over nodes in two stages: each GPU of a node has its own adapter and carries its share of the
numbers. Perceptual networks and encoders, the loading of data, checkpoints and pictures are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pmf_lightning.costs.blank_steps import Rivals
from pmf_lightning.costs.step_flops import step_flops
from pmf_lightning.draws import Shard
from pmf_lightning.optim.crew import deal
from pmf_lightning.optim.groups import parameter_groups
from pmf_lightning.optim.newton_schulz import STEPS
from pmf_lightning.precision import Number

FLOAT, HALF = 4, 2  # bytes: of weights, gradients and averages, and of what Newton-Schulz computes in on a GPU


@dataclass(frozen=True)
class Cluster:
    """Machines, as conf/cluster describes them: 10^12 operations, 10^9 bytes and 10^-6 seconds."""

    name: str
    gpus_per_node: int
    peak_tflops: Number
    share_of_peak: Number
    newton_schulz_share: Number
    memory_gb_s: Number
    within_node_gb_s: Number
    between_nodes_gb_s: Number
    share_of_bandwidth: Number
    latency_us: Number
    bucket_mb: Number
    backward_share: Number
    overlapped: Number

    def gathering(self, total: Number, gpus: int, messages: int) -> float:
        """Return the seconds in which all GPUs gather ``total`` bytes, a share from each; a reduce-scatter is alike."""
        here = min(gpus, self.gpus_per_node)
        nodes = gpus / here
        within = total * (1 - 1 / here) / self.within_node_gb_s
        between = total / here * (1 - 1 / nodes) / self.between_nodes_gb_s
        waiting = messages * math.log2(gpus) * self.latency_us * 1e-6
        return (within + between) * 1e-9 / self.share_of_bandwidth + waiting

    def exchange(self, sent: Number, gpus: int) -> float:
        """Return the seconds in which each GPU sends ``sent`` bytes, dealt out evenly over all."""
        link = self.within_node_gb_s if gpus <= self.gpus_per_node else self.between_nodes_gb_s
        return sent * 1e-9 / link / self.share_of_bandwidth + math.log2(gpus) * self.latency_us * 1e-6


@dataclass(frozen=True)
class Estimate:
    """One step on ``gpus`` devices. Seconds of each part; ``exposed`` is the exchange that nothing hides.

    ``gradients``, ``weights`` and ``updates`` are the bytes that each GPU receives; ``state`` the bytes of weights,
    gradients, moments and averages that each keeps.
    """

    strategy: str
    gpus: int
    images_per_gpu: int
    network: Number
    newton_schulz: Number
    newton_schulz_alone: Number
    update: Number
    gradients: Number
    weights: Number
    updates: Number
    exchange: Number
    exposed: Number
    state: Number

    @property
    def seconds(self) -> Number:
        """The whole step."""
        return self.network + self.newton_schulz + self.update + self.exposed

    @property
    def images_per_second(self) -> Number:
        """Of all GPUs together."""
        return self.gpus * self.images_per_gpu / self.seconds


@dataclass(frozen=True)
class _Sizes:
    """Numbers of a network: all weights, and the matrices of Muon."""

    weights: int
    matrices: list[tuple[int, int]]
    averages: int

    @property
    def in_matrices(self) -> int:
        return sum(rows * cols for rows, cols in self.matrices)


def estimates(
    network: nn.Module,
    objective: Any,
    batch: int,
    gpus: Sequence[int],
    cluster: Cluster,
    *,
    averages: int,
    muon: bool,
    rivals: Rivals = (1, 0),
) -> list[Estimate]:
    """Estimate a step of ``batch`` images over each number of ``gpus``, by DDP and by FSDP2.

    ``network`` must be on the meta device; ``muon`` says whether matrices are orthogonalised. ``batch`` must divide.
    """
    groups = {group["kind"]: group["params"] for group in parameter_groups(network)}
    matrices = [tuple(p.shape) for p in groups.get("muon", [])] if muon else []
    sizes = _Sizes(sum(p.numel() for ps in groups.values() for p in ps), matrices, averages)
    found = []
    for count in gpus:
        flops = step_flops(network, objective, batch // count, Shard(count - 1, count), rivals)
        seconds = flops / (cluster.peak_tflops * 1e12 * cluster.share_of_peak)
        found += [_ddp(sizes, count, batch // count, seconds, cluster)]
        found += [_fsdp(sizes, count, batch // count, seconds, cluster)]
    return found


def _ddp(sizes: _Sizes, gpus: int, images: int, seconds: float, cluster: Cluster) -> Estimate:
    gradients = 2 * FLOAT * sizes.weights * (1 - 1 / gpus)  # reduced, and gathered again
    updates = HALF * sizes.in_matrices * (1 - 1 / gpus)
    if gpus == 1:
        travel = shared = 0.0
    else:
        buckets = math.ceil(FLOAT * sizes.weights / (cluster.bucket_mb * 1e6))
        travel = 2 * cluster.gathering(FLOAT * sizes.weights, gpus, buckets)
        shared = cluster.gathering(HALF * sizes.in_matrices, gpus, 1) if sizes.matrices else 0.0
    hidden = min(travel, cluster.overlapped * cluster.backward_share * seconds)
    return Estimate(
        strategy="ddp",
        gpus=gpus,
        images_per_gpu=images,
        network=seconds,
        **_optimiser(sizes, gpus, 1, cluster),
        gradients=gradients,
        weights=0.0,
        updates=updates,
        exchange=travel + shared,
        exposed=travel - hidden + shared,
        state=_state(sizes),
    )


def _fsdp(sizes: _Sizes, gpus: int, images: int, seconds: float, cluster: Cluster) -> Estimate:
    total, rest = FLOAT * sizes.weights, 1 - 1 / gpus
    moved = (FLOAT + HALF) * sizes.in_matrices / gpus * rest  # rows to the matrix's worker, and back
    if gpus == 1:
        gather = shared = 0.0
    else:
        gather = cluster.gathering(total, gpus, len(sizes.matrices) // 7 or 1)  # about seven matrices to a block
        shared = 2 * cluster.exchange(moved / 2, gpus) if sizes.matrices else 0.0
    before = min(gather, cluster.overlapped * (1 - cluster.backward_share) * seconds)
    after = min(gather, cluster.overlapped * cluster.backward_share * seconds)
    return Estimate(
        strategy="fsdp",
        gpus=gpus,
        images_per_gpu=images,
        network=seconds,
        **_optimiser(sizes, gpus, gpus, cluster),
        gradients=total * rest,
        weights=total * rest,
        updates=moved,
        exchange=2 * gather + shared,
        exposed=2 * gather - before - after + shared,
        state=_state(sizes) / gpus + total,  # the whole weights stay from the first forward pass to the backward pass
    )


def _optimiser(sizes: _Sizes, gpus: int, parts: int, cluster: Cluster) -> dict[str, float]:
    """Return the seconds of Newton-Schulz, shared and alone, and of what moves memory: moments, weights, averages."""
    rate = cluster.peak_tflops * 1e12 * cluster.newton_schulz_share
    each = [newton_schulz_flops(shape) for shape in sizes.matrices]
    longest = max((sum(each[i] for i in share) for share in deal(sizes.matrices, gpus)), default=0)
    passes = 7 + 3 * sizes.averages  # gradient; weight, momentum and update twice; average twice, and the weight
    moved = FLOAT * passes * sizes.weights / parts
    return {
        "newton_schulz": longest / rate,
        "newton_schulz_alone": sum(each) / rate,
        "update": moved * 1e-9 / cluster.memory_gb_s / cluster.share_of_bandwidth,
    }


def newton_schulz_flops(shape: tuple[int, int], steps: int = STEPS) -> int:
    """Return the operations (2 per multiply-add) of orthogonalising one matrix (newton_schulz.py)."""
    small, large = sorted(shape)
    return steps * 2 * (small * small * large + small**3 + small * small * large)


def _state(sizes: _Sizes) -> Number:
    moments = sizes.in_matrices + 2 * (sizes.weights - sizes.in_matrices)
    return FLOAT * (sizes.weights * (2 + sizes.averages) + moments)
