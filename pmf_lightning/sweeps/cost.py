"""What the training of a sweep will cost, said before it starts: arithmetic counted on paper, or speed measured before.

The arithmetic of a run is images x block-forwards per image (block_forwards.py) x what a block costs on one image, by
the multiply-adds of one evaluation (profiling/model_cost.py). That is the count of every operation
(profiling/step_memory.py) to 1 %, in a second or two instead of a minute. Perceptual networks, encoders, the optimiser
and measurements are left out.
"""

import json
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config.compose import CONF
from pmf_lightning.pipeline.build import build
from pmf_lightning.profiling import block_forwards, model_cost
from pmf_lightning.profiling.communication import Cluster
from pmf_lightning.profiling.spaces import NoFlowError
from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.utils.precision import Number

EXA, DAY = 1e18, 86400
PARTS = ("backbone", "objective", "queues")  # with the shape of the images, what the arithmetic follows from
# So few numbers seen in a whole run, and its arithmetic is not worth a second of counting: an hour of a CPU at most.
FEW = 1e10


def images_of(cfg: DictConfig) -> int:
    """Return the images that a run trains on; of drifting, those that it makes."""
    return cfg.steps * cfg.batch


def is_small(cfg: DictConfig) -> bool:
    """Tell whether nobody would ask for the cost of a run on paper."""
    numbers = images_of(cfg) * cfg.data.channels * cfg.data.resolution**2
    return not is_paper(cfg) and numbers < FEW


def is_paper(cfg: DictConfig) -> bool:
    """Tell whether a run is an arm of an experiment at the scale of its paper."""
    return bool(cfg.get("study")) and cfg.study.get("scale") == "paper"


class Arithmetic:
    """Counts the training of runs; what they have in common, network and objective, is counted once."""

    def __init__(self):
        self._known: dict[str, float] = {}

    def __call__(self, cfg: DictConfig) -> float:
        """Return the floating-point operations (2 per multiply-add) of a run; raises UserError for a bad one.

        Raises NoFlowError where block-forwards are not known: for autoencoders.
        """
        parts = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in PARTS if name in cfg}
        shape = [cfg.data.channels, cfg.data.resolution, cfg.data.classes]
        key = json.dumps([parts, shape], sort_keys=True)
        if key not in self._known:
            self._known[key] = flops_per_image(cfg)
        return self._known[key] * images_of(cfg)

    @property
    def counted(self) -> int:
        """How many different ones there were."""
        return len(self._known)


def flops_per_image(cfg: DictConfig) -> float:
    """Return the operations of a training step per image, of the blocks alone and as if these were all; see above."""
    module = build(cfg, empty=True)
    network = module.network
    if not hasattr(network, "trunk"):
        raise NoFlowError(f"{cfg.name}: block-forwards are counted of transformers alone")
    head = "u" if "u" in network.heads else next(iter(network.heads))
    evaluation = 2 * model_cost.count(network, head).multiply_adds
    per_block = evaluation / (len(network.trunk) + len(network.heads[head].blocks))
    return per_block * float(block_forwards.count(network, module.objective, cfg.seed).total)


def load_cluster(name: str) -> Cluster:
    """Return what conf/cluster assumes of a GPU."""
    return instantiate(OmegaConf.load(CONF / "cluster" / f"{name}.yaml"))


def analytic_estimate(flops: Sequence[float], cluster: Cluster, counted: int) -> str:
    """Say what runs of so many operations come to, and the time of one GPU at the share of its peak assumed."""
    total = sum(flops)
    seconds = total / (cluster.peak_tflops * 1e12 * cluster.share_of_peak)
    gpu = cluster.name.rpartition(" ")[2]
    span = f"{seconds / DAY:,.3g} {gpu}-days" if seconds >= 2 * DAY else f"{seconds / 3600:,.2g} {gpu}-hours"
    each = sorted({_exa(one) for one in flops}, key=lambda text: float(text.replace(",", "")))
    one = "" if len(flops) == 1 else f" ({' to '.join([each[0], each[-1]][: len(each)])} each)"
    once = f"; {counted} of them counted, the others are like these" if counted < len(flops) else ""
    return (
        f"{_exa(total)} exaFLOP of training{one}: about {span} at {cluster.share_of_peak:.0%} of peak (assumed; "
        f"nothing measured there), without perceptual networks, optimiser and measurements{once}"
    )


def _exa(flops: Number) -> str:
    value = flops / EXA
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def measured_estimate(left: Sequence[tuple[SweepRun, int]], finished: Sequence[SweepRun]) -> str | None:
    """Say how long runs of so many images take at the speeds that finished ones measured; None without any.

    A run whose arm has finished with another seed takes that speed, others the mean of all.
    """
    speeds = [(arm.arm, arm.images_per_second) for arm in finished if arm.images_per_second > 0]
    if not speeds or not left:
        return None
    own = {name: [speed for other, speed in speeds if other == name] for name, _ in speeds}
    seconds = 0.0
    for arm, images in left:
        known = own.get(arm.arm, [speed for _, speed in speeds])
        seconds += images * len(known) / sum(known)
    span = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 1):.0f} seconds"
    return (
        f"about {span} of training at the images/s of the finished ones, one after the other; measurements come on top"
    )
