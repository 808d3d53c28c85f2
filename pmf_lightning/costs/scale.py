"""Step times on many GPUs, estimated on paper (communication.py), as plain data and as a table for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig
from rich.console import Group
from rich.table import Table

from pmf_lightning.assemble import build, make_part
from pmf_lightning.costs.communication import Cluster, Estimate, estimates
from pmf_lightning.errors import UserError
from pmf_lightning.hydra_compat import instantiate
from pmf_lightning.optim.muon_adam import MuonAdam

WIDTH = 130  # characters that the table needs
NOTE = (
    "An estimate on paper, not measured: exact counts over assumed speeds ({assumed}); see conf/cluster. Perceptual "
    "networks, data and pictures are left out. network: forwards, derivative and backward; few images per GPU reach a "
    "smaller share of the peak than assumed. orthog.: Newton-Schulz, shared out; alone: were it not. exchanged: GB "
    "that a GPU receives in a step; exposed: time of exchange that no arithmetic hides. kept: GB of weights, "
    "gradients, moments and averages on a GPU."
)


def estimate(cfg: DictConfig) -> list[Estimate]:
    """Estimate the steps that ``cfg`` describes on each number of ``cfg.gpus``; UserError where they do not divide."""
    module = build(cfg, empty=True)
    labels = getattr(module.objective, "generated", 1)
    for gpus in cfg.gpus:
        if gpus < 1 or cfg.batch // labels % gpus:
            raise UserError(f"gpus={gpus}: batch={cfg.batch} does not divide over them; set batch to a multiple")
    queues = cfg.get("queues")
    return estimates(
        module.network,
        module.objective,
        cfg.batch,
        list(cfg.gpus),
        make_part(cfg, "cluster"),
        averages=len(cfg.ema.half_lives_kimg),
        muon=isinstance(module.configure_optimizers()["optimizer"], MuonAdam),
        rivals=(queues.positives, queues.negatives) if queues else (1, 0),
    )


def as_json(found: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Return the estimates as plain data; seconds and bytes."""
    return [{**asdict(one), "seconds": one.seconds, "images_per_second": one.images_per_second} for one in found]


def table(cfg: DictConfig, found: Sequence[Estimate]) -> Group:
    """Return the estimates as a table, with what they assume."""
    cluster: Cluster = instantiate(cfg.cluster)
    rows = Table(title=f"{cfg.name} on {cluster.name}, {cfg.batch:,} images per step: an estimate", show_edge=False)
    for title in (
        *("GPUs", "images\nper GPU", "", "step\nms", "images/s", "network\nms", "orthog.\nms", "alone\nms"),
        *("update\nms", "exchanged\nGB", "exchange\nms", "exposed\nms", "kept\nGB"),
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
