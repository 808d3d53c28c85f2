"""Toy experiments of figure 2 of pMF and of JiT: a 2-D Swiss roll on a plane in D dimensions.

A network of limited width can predict the image, which is on the plane, for any D. Velocity and noise have all D
dimensions and do not fit through the network. All predictions are trained with the same velocity loss, by the objective
that trains images: MeanFlow for pMF, flow matching for JiT.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from pmf_lightning.config import validate
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.base import Batch
from pmf_lightning.objectives.fields import Quantity, noisy_image
from pmf_lightning.objectives.jit import JiT
from pmf_lightning.objectives.pixel_meanflow import PixelMeanFlow
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.optim.schedules import rate_factor
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.sampling.generate import generate, image_noise
from pmf_lightning.toys.manifold_report import write_report
from pmf_lightning.toys.result_cache import ResultCache
from pmf_lightning.toys.swiss_roll import (
    exact_image,
    nearest,
    project,
    random_plane,
    roll_images,
    sliced_distance,
    swiss_roll,
    velocity_error,
)
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import writable
from pmf_lightning.utils.errors import UserError, suggestions

# The settings that determine the result of an arm, in addition to the arm itself.
SETTINGS = ("plane_seed", "radius", "network", "steps", "batch", "optimizer", "schedule", "objective", "evaluation")
DATA_POINTS = 4096  # points that represent the roll in the exact velocity

Objective = PixelMeanFlow | JiT


@dataclass(frozen=True)
class ManifoldRun:
    """One training of ``prediction`` in ``dimension`` dimensions with ``seed``."""

    dimension: int
    prediction: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run in files and progress bars."""
        return f"D{self.dimension}-{self.prediction}-seed{self.seed}"


def manifold(cfg: DictConfig) -> dict[str, Path]:
    """Train and evaluate every arm of ``cfg`` (conf/toys/manifold*.yaml); return the paths of figure and tables.

    Finished arms are read from ``out``/arms and not run again. Raises UserError for bad input.
    """
    check(cfg)
    out = writable(Path(cfg.out), "out")
    cache = ResultCache(out / "arms")
    settings = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(SETTINGS)), resolve=True)
    arms = [ManifoldRun(*place) for place in product(cfg.dimensions, cfg.predictions, cfg.seeds)]
    arms.sort(key=lambda arm: arm.seed)  # so that a stopped study has every setting with one seed
    own = dict.fromkeys(arms, settings)
    cache.announce(own)
    results = cache.run_all(own, cfg.steps, partial(run, cfg))
    references = {dimension: reference(cfg, dimension) for dimension in cfg.dimensions}
    rows = [asdict(arm) | _with_support(result, references[arm.dimension]) for arm, result in results.items()]
    return write_report(out, rows, references, settings)


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the study can be run; builds each kind of arm once."""
    validate.listed(cfg, ("dimensions", "predictions", "seeds"))
    if min(cfg.dimensions) < 2:
        raise UserError(f"dimensions={list(cfg.dimensions)}: must be at least 2")
    evaluated = (f"evaluation.{key}" for key in ("points", "directions", "batches", "steps", "shown"))
    validate.at_least(cfg, dict.fromkeys(("steps", "batch", *evaluated), 1))
    validate.at_most(cfg, "evaluation.shown", "evaluation.points")
    for prediction in cfg.predictions:
        network, objective = build(cfg, ManifoldRun(cfg.dimensions[0], prediction, cfg.seeds[0]))
        validate.sampler(cfg.evaluation.get("sampler"), objective.samplers, cfg.evaluation.steps, "evaluation.")
        batch = unlabelled(torch.zeros(1, cfg.dimensions[0], 1, 1))
        losses = objective(network, batch, objective.draw(batch, 0, 0)).per_sample
        if (loss := cfg.evaluation.loss) not in losses:
            raise UserError(f"evaluation.loss={loss}: the objective has no such loss; {suggestions(loss, losses)}")
        try:
            make_part(cfg, "optimizer")(parameter_groups(network))
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from error


def build(cfg: DictConfig, arm: ManifoldRun) -> tuple[nn.Module, Objective]:
    """Return the network of an arm, with weights from the seed, and its objective."""
    sizes = {"network": {"channels": arm.dimension, "resolution": 1}, "objective": {"prediction": arm.prediction}}
    cfg = OmegaConf.merge(OmegaConf.masked_copy(cfg, ["network", "objective"]), sizes)
    network, objective = make_part(cfg, "network"), make_part(cfg, "objective")
    init_weights(network, lambda name: rng.generator(arm.seed, "init", name))
    return network, objective


def run(cfg: DictConfig, arm: ManifoldRun, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Train and evaluate one arm; ``advance(1)`` is called after every step."""
    started = time.perf_counter()
    network, objective = build(cfg, arm)
    train(cfg, arm, network, objective, advance)
    seconds = time.perf_counter() - started
    return {**evaluate(cfg, arm, network, objective), "train_seconds": round(seconds, 1)}


def train(cfg: DictConfig, arm: ManifoldRun, network: nn.Module, objective: Objective, advance: Callable) -> None:
    """Minimise the objective with new points in every step."""
    plane = random_plane(arm.dimension, cfg.plane_seed)
    optimizer = make_part(cfg, "optimizer")(parameter_groups(network))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, cfg.steps, **cfg.schedule))
    for step in range(cfg.steps):
        batch = unlabelled(roll_images(arm.seed, "roll", step, cfg.batch, cfg.radius, plane))
        losses = objective(network, batch, objective.draw(batch, arm.seed, step))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        rate.step()
        advance(1)


def unlabelled(x: Tensor) -> Batch:
    """Return a batch with dummy labels."""
    return Batch(x, torch.zeros(len(x), dtype=torch.long))


@torch.no_grad()
def evaluate(cfg: DictConfig, arm: ManifoldRun, network: nn.Module, objective: Objective) -> dict[str, Any]:
    """Return the v-loss, and metrics of points sampled in ``evaluation.steps`` steps.

    ``v_loss``: mean squared error of the velocity over points and dimensions, with draws shared by all arms of a
    dimension (for pMF, the error of V = u + (t - r) du/dt);
    ``distance``: sliced Wasserstein distance to the roll, on the plane;
    ``off_plane``: root mean square distance from the plane; ``points``: the first points, on the plane.
    """
    known, plane = cfg.evaluation, random_plane(arm.dimension, cfg.plane_seed)
    sums = []
    for step in range(known.batches):
        batch = unlabelled(roll_images(known.seed, "roll", step, cfg.batch, cfg.radius, plane))
        losses = objective(network, batch, objective.draw(batch, known.seed, step))
        sums.append(losses.per_sample[known.loss].mean().item())
    noise = objective.noise_scale * image_noise(known.seed, 0, known.points, (arm.dimension, 1, 1))
    labels = torch.full((known.points,), network.classes)
    images = generate(network, noise, labels, known.steps, sampler=known.get("sampler"), objective=objective)
    points, off = project(images, plane)
    return {
        "v_loss": mean(sums) / arm.dimension,
        "distance": sliced_distance(points, fresh_points(cfg, "truth"), known.seed, known.directions),
        "off_plane": off.square().mean().sqrt().item(),
        "points": [[round(value, 4) for value in point] for point in points[: known.shown].tolist()],
    }


@torch.no_grad()
def reference(cfg: DictConfig, dimension: int) -> dict[str, Any]:
    """Return the best possible metrics: those of the exact velocity, and of new points of the roll.

    The exact velocity (z - E[x | z]) / t has a ``v_loss`` above 0, since z does not determine x. It is given for each
    prediction, since objectives may clip the divisors of some. ``distance`` is between two sets of points of the roll.
    ``noise`` has the distances of the noise that sampling starts from: those of a network that does not move points on
    the plane.
    """
    known, plane = cfg.evaluation, random_plane(dimension, cfg.plane_seed)
    objectives = {prediction: build(cfg, ManifoldRun(dimension, prediction, 0))[1] for prediction in cfg.predictions}
    objective = objectives[cfg.predictions[0]]  # all have the same draws
    data = fresh_points(cfg, "exact", DATA_POINTS)
    losses = {prediction: [] for prediction in objectives}
    for step in range(known.batches):
        batch = unlabelled(roll_images(known.seed, "roll", step, cfg.batch, cfg.radius, plane))
        on = objective.draw(batch, known.seed, step)
        z = noisy_image(batch.x, on.noise, on.t)
        exact = exact_image(z, on.t, objective.noise_scale, data, plane)
        for prediction, each in objectives.items():
            error = velocity_error(exact - batch.x, on.t, clipped_quantity(each), each.t_clip)
            losses[prediction].append(error.square().mean().item())
    truth = fresh_points(cfg, "truth")
    begin = objective.noise_scale * image_noise(known.seed, 0, known.points, (dimension, 1, 1))
    noise, shown = project(begin, plane)[0], truth[: known.shown]
    return {
        "v_loss": {prediction: mean(values) for prediction, values in losses.items()},
        "noise": {
            "distance": sliced_distance(noise, truth, known.seed, known.directions),
            "off_roll": nearest(noise[: known.shown], shown).item(),
        },
        "distance": sliced_distance(fresh_points(cfg, "again"), truth, known.seed, known.directions),
        "points": [[round(value, 4) for value in point] for point in shown.tolist()],
    }


def clipped_quantity(objective: Objective) -> Quantity:
    """Return the quantity from which the v-loss target is computed by a clipped division; "v" if there is none."""
    if isinstance(objective, JiT):
        return objective.prediction
    return {"clipped": "x", "plain": "v"}[objective.v_target]


def _with_support(result: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Add ``off_roll``: the mean distance of the shown points from the nearest shown data points."""
    points, data = (torch.tensor(values["points"]) for values in (result, truth))
    return result | {"off_roll": nearest(points, data).item()}


def fresh_points(cfg: DictConfig, name: str, count: int | None = None) -> Tensor:
    """Sample points of the roll that no arm is trained on, float32 [count, 2]."""
    uniform = rng.uniform(cfg.evaluation.seed, name, count=count or cfg.evaluation.points)
    return swiss_roll(uniform, cfg.radius).float()
