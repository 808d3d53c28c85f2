"""Estimate step time and communication on many GPUs: exact counts over assumed speeds, as data and as a table.

Exact: the operations of a training step and of Newton-Schulz, as this package distributes them, and the bytes that DDP
or FSDP2 exchange. Assumed (conf/cluster): the share of peak FLOP/s, and the bandwidths. Collectives between nodes have
two stages: each GPU of a node has its own adapter and sends its share of the numbers. Perceptual networks, encoders,
data loading, checkpoints and image grids are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig
from rich.console import Group
from rich.table import Table
from torch import nn

from pmf_lightning.optim.distributed_muon import assign
from pmf_lightning.optim.muon_adam import MuonAdam
from pmf_lightning.optim.newton_schulz import STEPS
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.pipeline.parts import make_model, make_part
from pmf_lightning.profiling.step_memory import RealCounts, real_counts_of, step_flops
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows

FLOAT, HALF = 4, 2  # bytes per number: weights, gradients and averages; Newton-Schulz on a GPU


@dataclass(frozen=True)
class Cluster:
    """GPUs and links, as in conf/cluster; units: 10^12 operations, 10^9 bytes (``bucket_mb``: 10^6), 10^-6 seconds."""

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
        """Return the seconds of an all-gather of ``total`` bytes over all GPUs; a reduce-scatter takes the same."""
        here = min(gpus, self.gpus_per_node)
        nodes = gpus / here
        within = total * (1 - 1 / here) / self.within_node_gb_s
        between = total / here * (1 - 1 / nodes) / self.between_nodes_gb_s
        waiting = messages * math.log2(gpus) * self.latency_us * 1e-6
        return (within + between) * 1e-9 / self.share_of_bandwidth + waiting

    def exchange(self, sent: Number, gpus: int) -> float:
        """Return the seconds of an all-to-all in which each GPU sends ``sent`` bytes, evenly to all."""
        link = self.within_node_gb_s if gpus <= self.gpus_per_node else self.between_nodes_gb_s
        return sent * 1e-9 / link / self.share_of_bandwidth + math.log2(gpus) * self.latency_us * 1e-6


@dataclass(frozen=True)
class Estimate:
    """One step on ``gpus`` devices, in seconds per part; ``exposed`` is the communication that is not overlapped.

    ``gradients``, ``weights`` and ``updates`` are the bytes that each GPU receives. ``state`` is the bytes of weights,
    gradients, moments and averages that each GPU stores.
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
        """Seconds of the complete step."""
        return self.network + self.newton_schulz + self.update + self.exposed

    @property
    def images_per_second(self) -> Number:
        """Images per second of all GPUs together."""
        return self.gpus * self.images_per_gpu / self.seconds


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a network: number of weights, shapes of Muon's matrices, averages; whether moments are on the GPU."""

    weights: int
    matrices: list[tuple[int, int]]
    averages: int
    moments: bool

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
    moments: bool = True,
    real_counts: RealCounts = (1, 0),
) -> list[Estimate]:
    """Estimate a step of ``batch`` images for each number of ``gpus``, with DDP and with FSDP2.

    ``network`` must be on the meta device; ``muon`` says whether matrices are orthogonalised, ``moments`` whether
    the moments are on the GPU. Every number of ``gpus`` must divide ``batch``.
    """
    groups = {group["kind"]: group["params"] for group in parameter_groups(network)}
    matrices = [tuple(p.shape) for p in groups.get("muon", [])] if muon else []
    sizes = _Sizes(sum(p.numel() for ps in groups.values() for p in ps), matrices, averages, moments)
    found = []
    for count in gpus:
        flops = step_flops(network, objective, batch // count, BatchRows(count - 1, count), real_counts)
        seconds = flops / (cluster.peak_tflops * 1e12 * cluster.share_of_peak)
        found += [_ddp(sizes, count, batch // count, seconds, cluster)]
        found += [_fsdp(sizes, count, batch // count, seconds, cluster)]
    return found


def _ddp(sizes: _Sizes, gpus: int, images: int, seconds: float, cluster: Cluster) -> Estimate:
    gradients = 2 * FLOAT * sizes.weights * (1 - 1 / gpus)  # reduce-scatter and all-gather
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
    moved = (
        (FLOAT + HALF) * sizes.in_matrices / gpus * rest
    )  # rows to the rank that orthogonalises the matrix, and back
    if gpus == 1:
        gather = shared = 0.0
    else:
        gather = cluster.gathering(total, gpus, len(sizes.matrices) // 7 or 1)  # about seven matrices per block
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
        state=_state(sizes) / gpus + total,  # full weights stay between forward and backward
    )


def _optimiser(sizes: _Sizes, gpus: int, parts: int, cluster: Cluster) -> dict[str, float]:
    """Return the seconds of Newton-Schulz, distributed and on one GPU, and of the memory-bound updates."""
    rate = cluster.peak_tflops * 1e12 * cluster.newton_schulz_share
    each = [newton_schulz_flops(shape) for shape in sizes.matrices]
    longest = max((sum(each[i] for i in share) for share in assign(sizes.matrices, gpus)), default=0)
    passes = (
        7 + 3 * sizes.averages
    )  # read the gradient; read and write weight, momentum and update; per average: read and write it, read the weight
    moved = FLOAT * passes * sizes.weights / parts
    return {
        "newton_schulz": longest / rate,
        "newton_schulz_alone": sum(each) / rate,
        "update": moved * 1e-9 / cluster.memory_gb_s / cluster.share_of_bandwidth,
    }


def newton_schulz_flops(shape: tuple[int, int], steps: int = STEPS) -> int:
    """Return the operations (2 per multiply-add) to orthogonalise one matrix on a GPU (optim/newton_schulz.py)."""
    small, large = sorted(shape)
    return steps * 2 * (small * small * large + small**3 + small * small * large)


def _state(sizes: _Sizes) -> Number:
    moments = sizes.in_matrices + 2 * (sizes.weights - sizes.in_matrices)
    return FLOAT * (sizes.weights * (2 + sizes.averages) + moments * sizes.moments)


WIDTH = 130  # width of the table in characters

NOTE = (
    "An estimate, not measured: exact counts over assumed speeds ({assumed}); see conf/cluster. Perceptual "
    "networks, data and sample grids are not included. network: forwards, derivative and backward; few images per "
    "GPU reach a smaller share of the peak than assumed. orthog.: Newton-Schulz, distributed over the GPUs; single: on "
    "one GPU. exchanged: GB that a GPU receives in a step; exposed: exchange time that no arithmetic hides. "
    "stored: GB of weights, gradients, moments and averages on a GPU; with ema.device=cpu, averages and "
    "their update are not included, and with moments.device=cpu, moments and their copies are not."
)


def estimate(cfg: DictConfig) -> list[Estimate]:
    """Estimate the step that ``cfg`` describes for each number of ``cfg.gpus``; UserError if one does not divide it."""
    model = make_model(cfg, empty=True)
    per_label = model.objective.images_per_label
    for gpus in cfg.gpus:
        if gpus < 1 or cfg.batch // per_label % gpus:
            raise UserError(f"gpus={gpus}: batch={cfg.batch} does not divide over them; set batch to a multiple")
    return estimates(
        model.network,
        model.objective,
        cfg.batch,
        list(cfg.gpus),
        make_part(cfg, "cluster"),
        averages=len(cfg.ema.halflife_kimg) if cfg.ema.device is None else 0,
        muon=isinstance(model.make_optimizer(), MuonAdam),
        moments=cfg.moments.device is None,
        real_counts=real_counts_of(cfg, model.objective),
    )


def as_json(found: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Return the estimates as plain data, in seconds and bytes."""
    return [{**asdict(one), "seconds": one.seconds, "images_per_second": one.images_per_second} for one in found]


def table(cfg: DictConfig, found: Sequence[Estimate]) -> Group:
    """Return the estimates as a table, with their assumptions."""
    cluster: Cluster = instantiate(cfg.cluster)
    rows = Table(title=f"{cfg.name} on {cluster.name}, {cfg.batch:,} images per step: an estimate", show_edge=False)
    for title in (
        *("GPUs", "images\nper GPU", "", "step\nms", "images/s", "network\nms", "orthog.\nms", "single\nms"),
        *("update\nms", "exchanged\nGB", "exchange\nms", "exposed\nms", "stored\nGB"),
    ):
        rows.add_column(title, justify="right", no_wrap=True)
    for one in found:
        times = (one.network, one.newton_schulz, one.newton_schulz_alone, one.update)
        ms = [f"{1000 * seconds:.3g}" for seconds in times]
        moved = one.gradients + one.weights + one.updates
        exchange = [f"{moved / 1e9:.3g}", f"{1000 * one.exchange:.3g}", f"{1000 * one.exposed:.3g}"]
        first = [f"{one.gpus:,}", f"{one.images_per_gpu:,}", one.strategy, f"{1000 * one.seconds:.3g}"]
        rows.add_row(*first, f"{one.images_per_second:,.0f}", *ms, *exchange, f"{one.state / 1e9:.3g}")
    assumed = (
        f"{cluster.share_of_peak:.0%} of {cluster.peak_tflops:g} TFLOP/s, {cluster.within_node_gb_s:g} GB/s within and "
        f"{cluster.between_nodes_gb_s:g} GB/s between nodes of {cluster.gpus_per_node}, "
        f"{cluster.share_of_bandwidth:.0%} of them reached"
    )
    return Group(rows, "", NOTE.format(assumed=assumed))
