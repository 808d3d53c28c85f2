"""Toy experiment of RDM (arXiv 2607.02375, figure 3): a generator learns a spiral with each of six distances.

The spiral is on a plane in D dimensions. A network maps noise to points of that space, and is trained with one
distance of distributions at one batch. Small batches show what a distance knows of the whole data: Frechet compares
moments alone, the Nystrom MMD has a frozen reference of all real points.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pmf_lightning.config import validate
from pmf_lightning.models.vit import init_weights
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.optim.schedules import rate_factor
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.toys.point_network import PointNetwork
from pmf_lightning.toys.result_cache import ResultCache
from pmf_lightning.toys.spiral_data import Spiral, scores
from pmf_lightning.toys.spiral_losses import LOSSES, Loss
from pmf_lightning.toys.spiral_report import SCORES, write_report
from pmf_lightning.toys.swiss_roll import random_plane
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import writable
from pmf_lightning.utils.errors import Diverged, UserError, suggestions

# The settings that determine the result of an arm, in addition to the arm itself and the section of its loss.
SETTINGS = ("dimension", "data", "network", "steps", "optimizer", "last_rate", "clip", "evaluation")


@dataclass(frozen=True)
class SpiralRun:
    """One training with ``distance`` at ``batch`` generated points in a step, with random numbers of ``seed``."""

    distance: str
    batch: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the run in files and progress bars."""
        return f"{self.distance}-B{self.batch}-seed{self.seed}"


def spiral(cfg: DictConfig) -> dict[str, Path]:
    """Train and evaluate every arm of ``cfg`` (conf/toys/spiral.yaml); return the paths of figure and tables.

    Finished arms are read from ``out``/arms and not run again. Raises UserError for bad input, and Diverged for an arm
    whose points are not finite.
    """
    check(cfg)
    out = writable(Path(cfg.out), "out")
    cache = ResultCache(out / "arms")
    shared = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(SETTINGS)), resolve=True)
    losses = OmegaConf.to_container(cfg.loss, resolve=True)
    arms = [SpiralRun(*place) for place in product(cfg.distances, cfg.batches, cfg.seeds)]
    arms.sort(
        key=lambda arm: list(cfg.seeds).index(arm.seed)
    )  # so that a stopped study has every setting with one seed
    own = {arm: shared | {"loss": losses[arm.distance]} for arm in arms}
    cache.announce(own)
    results = cache.run_all(own, cfg.steps, partial(run, cfg))
    rows = [asdict(arm) | result for arm, result in results.items()]
    compared = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["published", "agreement"]))
    return write_report(out, rows, reference(cfg), compared, shared | {"loss": losses})


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the study can be run; builds the network and every loss once."""
    validate.listed(cfg, ("distances", "batches", "seeds"))
    for name in cfg.distances:
        if name not in LOSSES:
            raise UserError(
                f"distances={list(cfg.distances)}: there is no distance {name}; {suggestions(name, LOSSES)}"
            )
    minima = {"dimension": 2, "steps": 1, "data.points": 2, "network.noise": 1}
    minima |= {f"evaluation.{key}": 1 for key in ("points", "anchors", "curve", "shown")}
    validate.at_least(cfg, minima)
    most = cfg.data.points  # real points are drawn without repetition
    if min(cfg.batches) < 2 or max(cfg.batches) > most:
        raise UserError(f"batches={list(cfg.batches)}: a batch has 2 to {most} points (data.points)")
    for name, key in (("drift", "positives"), ("mmd_nystrom", "landmarks")):
        if not 1 <= cfg.loss[name][key] <= most:
            raise UserError(f"loss.{name}.{key}={cfg.loss[name][key]}: give 1 to {most} (data.points)")
    validate.at_most(cfg, "evaluation.shown", "evaluation.points")
    if not 0 <= cfg.last_rate <= 1 or cfg.clip <= 0:
        raise UserError(f"last_rate={cfg.last_rate} clip={cfg.clip}: give a fraction from 0 to 1, and a norm above 0")
    check_published(cfg)
    check_parts(cfg)


def check_published(cfg: DictConfig) -> None:
    """Raise UserError unless every published list has one number per batch."""
    count = len(cfg.published.batches)
    for score in SCORES:
        for name, values in cfg.published[score].items():
            if len(values) != count:
                raise UserError(
                    f"published.{score}.{name}={list(values)}: give {count}, one for each of published.batches"
                )


def check_parts(cfg: DictConfig) -> None:
    """Raise UserError unless network, optimizer and losses can be built."""
    real = real_features(cfg, cfg.seeds[0])
    for name in cfg.distances:
        arm = SpiralRun(name, min(cfg.batches), cfg.seeds[0])
        points = build(cfg, arm)(noise(arm.seed, "check", 0, arm.batch, cfg.network.noise))
        try:
            make_loss(cfg, arm, real)(points, 0)
        except ValueError as error:
            raise UserError(f"loss.{name}: {error}") from error
        except torch.linalg.LinAlgError as error:
            jitter = cfg.loss.mmd_nystrom.jitter
            raise UserError(f"loss.mmd_nystrom.jitter={jitter}: no factor of the kernels; set a larger one") from error
    try:
        make_part(cfg, "optimizer")(parameter_groups(build(cfg, arm)))
    except ValueError as error:
        raise UserError(f"optimizer: {error}") from error


def build(cfg: DictConfig, arm: SpiralRun) -> PointNetwork:
    """Return the network of an arm, with weights from the seed."""
    sizes = {"network": {"features": cfg.dimension}}
    network = make_part(OmegaConf.merge(OmegaConf.masked_copy(cfg, "network"), sizes), "network")
    init_weights(network, lambda name: rng.generator(arm.seed, "init", name))
    return network


def real_features(cfg: DictConfig, seed: int) -> Float[Tensor, "n d"]:
    """Return the real points in ``dimension`` dimensions, on the plane of the seed, float32."""
    points = Spiral(**cfg.data.curve).points(cfg.data.seed, "data", cfg.data.points)
    return points @ random_plane(cfg.dimension, seed).T


def make_loss(cfg: DictConfig, arm: SpiralRun, real: Float[Tensor, "n d"]) -> Loss:
    """Return the loss of an arm, a function of generated features and step."""
    options = OmegaConf.to_container(cfg.loss, resolve=True)[arm.distance]
    return LOSSES[arm.distance](real, arm.seed, **options)


def noise(seed: int, name: str, step: int, count: int, width: int) -> Float[Tensor, "n z"]:
    """Sample standard normal noise, float32."""
    return rng.normal(seed, name, step, count=count * width).view(count, width).float()


def run(cfg: DictConfig, arm: SpiralRun, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Train and evaluate one arm; ``advance(1)`` is called after every step."""
    started = time.perf_counter()
    network, loss_of = build(cfg, arm), make_loss(cfg, arm, real_features(cfg, arm.seed))
    optimizer = make_part(cfg, "optimizer")(parameter_groups(network))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, cfg.steps, cfg.last_rate))
    for step in range(cfg.steps):
        points = network(noise(arm.seed, "noise", step, arm.batch, cfg.network.noise))
        optimizer.zero_grad()
        loss_of(points, step).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.clip)
        optimizer.step()
        rate.step()
        advance(1)
    return {**evaluate(cfg, arm, network), "train_seconds": round(time.perf_counter() - started, 1)}


def rate_at(step: int, steps: int, last: float | int) -> float:
    """Return the factor on the learning rate: from 1 to ``last`` by half a cosine."""
    return last + (1 - last) * rate_factor(step, steps, warmup_fraction=0, decay_fraction=1, decay="cosine")


@torch.no_grad()
def evaluate(cfg: DictConfig, arm: SpiralRun, network: PointNetwork) -> dict[str, Any]:
    """Return the scores of new points on the plane of the data, and the first of these points.

    ``off_plane`` is their root mean square distance from the plane, which scores and figure do not see.
    """
    known, plane = cfg.evaluation, random_plane(cfg.dimension, arm.seed)
    features = network(noise(known.seed, "noise", 0, known.points, cfg.network.noise))
    if not features.isfinite().all():
        raise Diverged(f"{arm.name}: the generated points are not finite; set a smaller optimizer.lr")
    points = features @ plane
    return {
        **scored(cfg, points),
        "off_plane": (features - points @ plane.T).norm(dim=1).square().mean().sqrt().item(),
        "points": [[round(value, 3) for value in point] for point in points[: known.shown].tolist()],
    }


def scored(cfg: DictConfig, points: Float[Tensor, "n 2"]) -> dict[str, float]:
    """Return recall and median distance of points on the plane."""
    known = cfg.evaluation
    return scores(points, Spiral(**cfg.data.curve), known.anchors, known.near, known.curve)


def reference(cfg: DictConfig) -> dict[str, Any]:
    """Return the scores of new data points, and the curve."""
    known, data = cfg.evaluation, Spiral(**cfg.data.curve)
    return {**scored(cfg, data.points(known.seed, "truth", known.points)), "curve": data.curve(known.curve).tolist()}
