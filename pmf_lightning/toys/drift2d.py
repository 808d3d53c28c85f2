"""Toy experiment of the Drifting paper: a generator of 2-D points drifts to bimodal data, from three starts.

A point is start + spread * noise + MLP(noise). The last layer of the MLP is initialised to zero, so the start is exact.
The loss is ``drift_loss``, as for images. Its value is nearly constant; progress shows in the norm of the forces before
normalisation, and in the fraction of points near each mode.
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
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from pmf_lightning.config import validate
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.drifting_loss import drift_loss
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.optim.schedules import rate_factor
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.toys.drift2d_report import write_report
from pmf_lightning.toys.result_cache import ResultCache
from pmf_lightning.toys.swiss_roll import sliced_distance
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import writable
from pmf_lightning.utils.errors import UserError

Points = Float[Tensor, "n 2"]


class TwoModes:
    """Mixture of two isotropic Gaussians with standard deviation ``spread`` around ``centres``, equally likely."""

    def __init__(self, centres, spread):
        self.centres = torch.tensor([list(map(float, centre)) for centre in centres])
        self.spread = float(spread)

    def points(self, seed: int, name: str, step: int, count: int) -> Points:
        """Sample ``count`` points, float32."""
        mode = (rng.uniform(seed, name, "mode", step, count=count) < 0.5).long()
        normal = rng.normal(seed, name, "normal", step, count=2 * count).view(count, 2)
        return (self.centres.double()[mode] + self.spread * normal).float()


def shares(points: Points, modes: TwoModes, near: float | int) -> list[float]:
    """Return the fraction of ``points`` within ``near`` spreads of each centre."""
    distance = (points[:, None] - modes.centres).norm(dim=2)
    return (distance < near * modes.spread).double().mean(0).tolist()


# The settings that determine the result of an arm, in addition to the arm itself.
SETTINGS = ("modes", "network", "steps", "problems", "samples", "positives", "optimizer", "schedule")

SETTINGS += ("loss", "evaluation", "film")


@dataclass(frozen=True)
class Drift2dRun:
    """One training from the start named ``start``, with random numbers of ``seed``."""

    start: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run in files and progress bars."""
        return f"{self.start}-seed{self.seed}"


class Generator(nn.Module):
    """Generator of points: centre + spread * noise + MLP(noise), for ``noise`` [n,2]."""

    def __init__(self, mlp: nn.Module, centre: Points, spread: float):
        super().__init__()
        self.mlp, self.centre, self.spread = mlp, centre, spread

    def forward(self, noise: Points) -> Points:
        """Return the points of a batch of noise."""
        return self.centre + self.spread * noise + self.mlp(noise[:, :, None, None], {})["x"][:, :, 0, 0]


def drift2d(cfg: DictConfig) -> dict[str, Path]:
    """Train and evaluate every arm of ``cfg`` (conf/toys/drift2d.yaml); return the paths of figures and tables.

    Finished arms are read from ``out``/arms and not run again. Raises UserError for bad input.
    """
    check(cfg)
    out = writable(Path(cfg.out), "out")
    cache = ResultCache(out / "arms")
    settings = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(SETTINGS)), resolve=True)
    arms = [Drift2dRun(*place) for place in product(cfg.starts, cfg.seeds)]
    own = {arm: settings | {"start": OmegaConf.to_container(cfg.starts[arm.start])} for arm in arms}
    results = cache.run_all(own, cfg.steps, partial(run, cfg))
    rows = [asdict(arm) | result for arm, result in results.items()]
    return write_report(out, rows, reference(cfg), settings | {"starts": OmegaConf.to_container(cfg.starts)})


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the study can be run; builds one arm and computes its loss once."""
    validate.listed(cfg, ("starts", "seeds"))
    minima = {"steps": 1, "problems": 1, "samples": 2, "positives": 1}
    minima |= {"evaluation.points": 2, "evaluation.directions": 1, "evaluation.every": 1, "evaluation.batches": 1}
    minima |= {"film.frames": 2, "film.shown": 1}
    validate.at_least(cfg, minima)
    validate.at_most(cfg, "film.shown", "evaluation.points")
    if len(cfg.modes.centres) != 2 or any(len(centre) != 2 for centre in cfg.modes.centres):
        raise UserError(f"modes.centres={cfg.modes.centres}: give two points of two numbers each")
    if cfg.modes.spread <= 0:
        raise UserError(f"modes.spread={cfg.modes.spread}: must be above 0")
    for name, start in cfg.starts.items():
        if set(start) != {"centre", "spread"} or len(start.centre) != 2 or start.spread < 0:
            raise UserError(f"starts.{name}={start}: give a centre of two numbers, and a spread of 0 or more")
    network = build(cfg, Drift2dRun(next(iter(cfg.starts)), cfg.seeds[0]))
    try:
        make_part(cfg, "optimizer")(parameter_groups(network))
        loss_of(cfg, torch.zeros(2 * cfg.problems, 2), torch.zeros(cfg.problems, 2))
    except ValueError as error:
        raise UserError(f"optimizer or loss: {error}") from error


def build(cfg: DictConfig, arm: Drift2dRun) -> Generator:
    """Return the generator of an arm, with weights from the seed and a zero last layer."""
    sizes = {"network": {"channels": 2, "resolution": 1, "scalars": [], "heads": ["x"]}}
    mlp = make_part(OmegaConf.merge(OmegaConf.masked_copy(cfg, "network"), sizes), "network")
    init_weights(mlp, lambda name: rng.generator(arm.seed, "init", name))
    nn.init.zeros_(mlp.heads["x"].weight)
    start = cfg.starts[arm.start]
    return Generator(mlp, torch.tensor([list(map(float, start.centre))]), float(start.spread))


def loss_of(cfg: DictConfig, gen: Points, pos: Float[Tensor, "m 2"]) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """Return the losses of ``cfg.problems`` independent problems, to which the points are split, and numbers to log."""
    gen, pos = (points.unflatten(0, (cfg.problems, -1)) for points in (gen, pos))
    return drift_loss(gen, pos, **OmegaConf.to_container(cfg.loss))


def run(cfg: DictConfig, arm: Drift2dRun, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Train and evaluate one arm; ``advance(1)`` is called after every step."""
    started = time.perf_counter()
    network, frames = build(cfg, arm), set(snapshot_steps(cfg.steps, cfg.film.frames))
    optimizer = make_part(cfg, "optimizer")(parameter_groups(network))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, cfg.steps, **cfg.schedule))
    data, log, film = TwoModes(**cfg.modes), [], []
    for step in range(cfg.steps):
        if step in frames:
            film.append(snapshot(cfg, network, step))
        gen = network(noise(arm.seed, "noise", step, cfg.problems * cfg.samples))
        pos = data.points(arm.seed, "data", step, cfg.problems * cfg.positives)
        loss, info = loss_of(cfg, gen, pos)
        if step % cfg.evaluation.every == 0 or step == cfg.steps - 1:
            log.append(logged(cfg, step, gen.detach(), loss, info))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        rate.step()
        advance(1)
    film.append(snapshot(cfg, network, cfg.steps))
    seconds = round(time.perf_counter() - started, 1)
    return {**evaluate(cfg, network), "train_seconds": seconds, "log": log, "film": film}


def noise(seed: int, name: str, step: int, count: int) -> Points:
    """Sample standard normal points, float32."""
    return rng.normal(seed, name, step, count=2 * count).view(count, 2).float()


def snapshot_steps(steps: int, frames: int) -> list[int]:
    """Return the steps before which points are saved, without the end: frame k of n is at (k / n)^2 of the run."""
    return sorted({int(steps * (k / (frames - 1)) ** 2) for k in range(frames - 1)})


@torch.no_grad()
def snapshot(cfg: DictConfig, network: Generator, step: int) -> dict[str, Any]:
    """Return the generated points before a step, always from the same noise (that of the evaluation)."""
    points = network(noise(cfg.evaluation.seed, "noise", 0, cfg.evaluation.points)[: cfg.film.shown])
    return {"step": step, "points": [[round(value, 2) for value in point] for point in points.tolist()]}


def logged(cfg: DictConfig, step: int, gen: Points, loss: Tensor, info: dict[str, Tensor]) -> dict[str, Any]:
    """Return the logged numbers of a step: loss, scale, a force norm per temperature, and shares of points per mode."""
    return {
        "step": step,
        "loss": loss.mean().item(),
        "scale": info["scale"].item(),
        "force_norm": info["force_norm"].tolist(),
        "shares": shares(gen, TwoModes(**cfg.modes), cfg.evaluation.near),
    }


@torch.no_grad()
def evaluate(cfg: DictConfig, network: Generator) -> dict[str, Any]:
    """Evaluate new points: shares near each mode, and the sliced Wasserstein distance to the data."""
    known, data = cfg.evaluation, TwoModes(**cfg.modes)
    points = network(noise(known.seed, "noise", 0, known.points))
    return measured(cfg, points, data)


def measured(cfg: DictConfig, points: Points, data: TwoModes) -> dict[str, Any]:
    """Return the shares of ``points`` near each mode and elsewhere, and the distance to new data."""
    known = cfg.evaluation
    truth = data.points(known.seed, "truth", 0, known.points)
    first, second = shares(points, data, known.near)
    distance = sliced_distance(points, truth, known.seed, known.directions)
    return {"first": first, "second": second, "elsewhere": 1 - first - second, "distance": distance}


def reference(cfg: DictConfig) -> dict[str, Any]:
    """Return the metrics of new data points, and the loss numbers with data in place of samples.

    Force norms are not 0 even if samples and data have the same distribution: two finite sets differ.
    """
    data, known, log = TwoModes(**cfg.modes), cfg.evaluation, []
    counts = {"gen": cfg.problems * cfg.samples, "pos": cfg.problems * cfg.positives}
    for batch in range(known.batches):
        gen, pos = (data.points(known.seed, name, batch, count) for name, count in counts.items())
        log.append(logged(cfg, batch, gen, *loss_of(cfg, gen, pos)))
    points = data.points(known.seed, "again", 0, known.points)
    return {
        **measured(cfg, points, data),
        "loss": mean(entry["loss"] for entry in log),
        "force_norm": [mean(norms) for norms in zip(*(entry["force_norm"] for entry in log), strict=True)],
        "points": [[round(value, 2) for value in point] for point in points[: cfg.film.shown].tolist()],
    }
