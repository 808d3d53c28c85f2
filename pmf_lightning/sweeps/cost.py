"""Estimate the training cost of a sweep before it starts, from counted FLOPs or from measured speeds.

The FLOPs of a run are images x block-forwards per image (profiling/block_forwards.py) x FLOPs of a block on one image,
from the multiply-adds of one evaluation (profiling/model_cost.py). They agree with the count of every operation
(profiling/step_memory.py) to 1 %, in a second or two instead of a minute. Perceptual networks, encoders, the optimiser
and evaluations are left out.
"""

import json
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config.groups import file_of
from pmf_lightning.pipeline.build import build
from pmf_lightning.profiling import block_forwards, model_cost
from pmf_lightning.profiling.communication import Cluster
from pmf_lightning.profiling.model_cost import NotCountedError
from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.precision import Number

EXA, DAY = 1e18, 86400
# With the image shape, these determine the FLOPs.
PARTS = ("backbone", "objective", "posttrain", "queues", "activation_checkpointing")
# A run that sees fewer numbers (images x channels x pixels) takes at most an hour on a CPU: no FLOPs are counted.
FEW = 1e10


def images_of(cfg: DictConfig) -> int:
    """Return the number of images that a run trains on, or that it generates."""
    return cfg.steps * cfg.batch


def is_small(cfg: DictConfig) -> bool:
    """Return whether a run is too small to count its FLOPs."""
    numbers = images_of(cfg) * cfg.data.channels * cfg.data.resolution**2
    return not is_paper(cfg) and numbers < FEW


def is_paper(cfg: DictConfig) -> bool:
    """Return whether a run is an arm of a study at the scale of its paper."""
    return bool(cfg.get("study")) and cfg.study.get("scale") == "paper"


class Arithmetic:
    """Counts the training FLOPs of runs; runs with the same network and objective are counted once."""

    def __init__(self):
        self._known: dict[str, float] = {}

    def __call__(self, cfg: DictConfig) -> float:
        """Return the floating-point operations (2 per multiply-add) of a run; raises UserError for a bad one.

        Raises NotCountedError if block-forwards are unknown, as for autoencoders.
        """
        sections = {name: cfg[name] for name in PARTS if name in cfg}
        parts = {
            name: OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
            for name, section in sections.items()
        }
        shape = [cfg.data.channels, cfg.data.resolution, cfg.data.classes]
        key = json.dumps([parts, shape], sort_keys=True)
        if key not in self._known:
            self._known[key] = flops_per_image(cfg)
        return self._known[key] * images_of(cfg)

    @property
    def counted(self) -> int:
        """The number of different configurations counted."""
        return len(self._known)


def flops_per_image(cfg: DictConfig) -> float:
    """Return the FLOPs of training per image, with an evaluation's FLOPs divided evenly over its blocks."""
    module = build(cfg, empty=True)
    network = module.network
    if not hasattr(network, "trunk"):
        raise NotCountedError(f"{cfg.name}: block-forwards are counted for transformers only")
    head = "u" if "u" in network.heads else next(iter(network.heads))
    evaluation = 2 * model_cost.count(network, head).multiply_adds
    per_block = evaluation / (len(network.trunk) + len(network.heads[head].blocks))
    return per_block * float(block_forwards.count(network, module.objective, cfg.seed).total)


def load_cluster(name: str) -> Cluster:
    """Return the GPU assumptions of a choice of the group cluster."""
    return instantiate(OmegaConf.load(file_of("cluster", name)))


def analytic_estimate(flops: Sequence[float], cluster: Cluster, counted: int) -> str:
    """Describe the total of ``flops`` (one number per run) and its time on one GPU at the assumed share of peak."""
    total = sum(flops)
    seconds = total / (cluster.peak_tflops * 1e12 * cluster.share_of_peak)
    gpu = cluster.name.rpartition(" ")[2]
    span = f"{seconds / DAY:,.3g} {gpu}-days" if seconds >= 2 * DAY else f"{seconds / 3600:,.2g} {gpu}-hours"
    each = sorted({_exa(one) for one in flops}, key=lambda text: float(text.replace(",", "")))
    one = "" if len(flops) == 1 else f" ({' to '.join([each[0], each[-1]][: len(each)])} each)"
    distinct = f"; {counted} distinct configurations counted" if counted < len(flops) else ""
    return (
        f"{_exa(total)} exaFLOP of training{one}: about {span} at {cluster.share_of_peak:.0%} of peak (assumed, not "
        f"measured), without perceptual networks, optimiser and evaluation{distinct}"
    )


def _exa(flops: Number) -> str:
    value = flops / EXA
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def measured_estimate(left: Sequence[tuple[SweepRun, int]], finished: Sequence[SweepRun]) -> str | None:
    """Describe the time of the remaining runs at the measured speeds of finished ones; None without any.

    A run uses the speed of its arm's finished seeds if there are any, else the mean of all runs.
    """
    speeds = [(arm.arm, arm.images_per_second) for arm in finished if arm.images_per_second > 0]
    if not speeds or not left:
        return None
    by_arm = {name: [speed for other, speed in speeds if other == name] for name, _ in speeds}
    seconds = 0.0
    for arm, images in left:
        arm_speeds = by_arm.get(arm.arm, [speed for _, speed in speeds])
        seconds += images * len(arm_speeds) / sum(arm_speeds)
    span = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 1):.0f} seconds"
    return (
        f"about {span} of training at the images/s of the finished runs, one after the other; evaluation is not "
        "included"
    )
