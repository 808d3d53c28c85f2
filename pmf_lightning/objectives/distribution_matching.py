"""Post-training by distribution matching: FD-loss (arXiv 2604.28190) and RDM (arXiv 2607.02375).

A generator that is already trained makes images in one step. Their features in frozen encoders, as a set, are pulled to
those of real images by a discrepancy (objectives/discrepancies/). Training needs labels and no images. The network
stays what it was: it is sampled, stored and converted as before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.objectives.base import (
    ONE_DEVICE,
    Description,
    EncoderRequest,
    LabelBatch,
    Losses,
    Network,
    OneDevice,
    State,
)
from pmf_lightning.objectives.discrepancies.balance import weighted_sum
from pmf_lightning.objectives.discrepancies.base import Discrepancy
from pmf_lightning.objectives.discrepancies.controller import ControllerState, GatedController
from pmf_lightning.objectives.discrepancies.gradient_cache import features_in_parts
from pmf_lightning.objectives.discrepancies.joint import JointLaw
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.objectives.fields import Image
from pmf_lightning.objectives.one_step import OneStepObjective
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

FILL_BATCH = 256  # images generated at a time before the first step, as in FD-loss
FLOOR_DRAWS = 8  # random sets of held-out images over which a floor is averaged, as in RDM


@dataclass(frozen=True)
class MatchingDraws:
    """The random numbers of a shard: noise [B,C,H,W] already scaled, conditions [B,...] by name.

    ``discrepancy`` holds the draws of the discrepancy, which are of the global batch and alike on all devices.
    """

    noise: Float[Tensor, "b c h w"]
    conditions: Mapping[str, Tensor]
    discrepancy: Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """What the features in one encoder are compared with.

    ``reference`` is the discrepancy's, ``law`` appends labels (None: images alone), ``floor`` is the distance of as
    many held-out images as a step makes (None: not measured).
    """

    reference: Any
    law: JointLaw | None
    floor: float | None = None

    def to(self, device: torch.device | str) -> "Target":
        """Return the target on ``device``."""
        return replace(self, reference=self.reference.to(device))


@dataclass(frozen=True)
class DistributionMatching(OneStepObjective):
    """The objective of post-training; its values are set in conf/posttrain and conf/discrepancy.

    Args:
        name: of the recipe, which is appended to the name of the run.
        discrepancy: compares the features of generated images with those of real ones.
        encoders: names of the encoders of ``battery`` that the loss uses.
        weights: of the encoders' losses, by name; 1 for the others, None: 1 for all.
        controller: sets the weights by how far each encoder is above its floor (RDM), in place of ``weights``: all
            arguments of ``GatedController`` but ``floors``; None: no controller. A discrepancy with a population
            has none, since a floor is the distance of as many images as are compared.
        joint: compare the joint law of image and label: the scale of the label's code, 1 for RDM's; None: images alone.
        generator, omega, t_min, t_max: see ``OneStepObjective``.
        clamp: clip pixels to [-1, 1] in front of the encoders, with no gradient where they saturate (RDM).
        batch: images per step, over all devices.
        micro_batch: images per pass; None: the batch in one pass. It changes the memory, not the result: all features
            are computed first, and the backward pass repeats the generator's and the encoders' passes part by part
            (gradient caching).

    Raises ValueError for values out of range, and for a generator that does not make images in one step.
    """

    data: ClassVar = "labels"
    config_groups: ClassVar = ("battery",)
    needs_global_batch: ClassVar = True
    splits_batch: ClassVar = True
    loss_note: ClassVar = "the loss is normalised and says nothing: watch the distance in each encoder"

    name: str
    discrepancy: Discrepancy
    encoders: Sequence[str]
    weights: Mapping[str, Number] | None
    controller: Mapping[str, Any] | None
    joint: Number | None
    clamp: bool
    batch: int
    micro_batch: int | None

    def __post_init__(self):
        super().__post_init__()
        if not self.encoders:
            raise ValueError("encoders=[]: name at least one encoder of battery=")
        if len(set(self.encoders)) < len(self.encoders):
            raise ValueError(f"encoders=[{','.join(self.encoders)}]: name each once, and give weights instead")
        if unknown := [name for name in self.weights or () if name not in self.encoders]:
            raise ValueError(f"weights.{unknown[0]}: it is not one of encoders=[{','.join(self.encoders)}]")
        if self.controller is not None and self.weights:
            raise ValueError("weights and controller: the controller sets the weights; leave one of the two out")
        if self.controller is not None and self.discrepancy.fill:
            raise ValueError(
                f"controller: its floors are distances of batch={self.batch} images, and the discrepancy compares "
                f"{self.discrepancy.fill} with past ones; leave it out, or set posttrain.discrepancy.population=batch"
            )
        if self.controller is not None:
            GatedController((0.0,), **{**self.controller, "relative": False})  # reports values out of range
        if self.batch < self.discrepancy.least_rows:
            raise ValueError(
                f"batch={self.batch}: so few images have no covariance; set {self.discrepancy.least_rows} or more, or "
                "a population"
            )
        if 0 < self.discrepancy.fill < self.batch:
            raise ValueError(
                f"discrepancy.rows={self.discrepancy.fill}: the population is smaller than batch={self.batch}; raise it"
            )

    # Encoders and what they compare with

    @property
    def encoder_request(self) -> EncoderRequest:
        """The encoders of the loss, with the real features that the discrepancy needs."""
        needs = ("rows",) if self.joint is not None else tuple(self.discrepancy.needs)
        held_out = 0 if self.controller is None else self.batch
        return EncoderRequest("battery", tuple(self.encoders), self.target, needs, held_out)

    def target(self, real: RealFeatures, classes: int) -> Target:
        """Return what features in one encoder are compared with, made of those of ``real`` images.

        ``classes`` is the number of classes of the data. Raises ValueError if ``real`` does not fit.
        """
        law = None
        if self.joint is not None:
            law = JointLaw.fit(real.pool(), classes, scale=self.joint)
            real = real.joined(law)
        reference = self.discrepancy.reference(real)
        return Target(reference, law, None if self.controller is None else self._floor(real, reference))

    def _floor(self, real: RealFeatures, reference: Any) -> float:
        """Return the mean distance of random sets of ``batch`` held-out images, which includes the bias of the size."""
        if real.held_out is None or len(real.held_out) < self.batch:
            there = 0 if real.held_out is None else len(real.held_out)
            raise ValueError(
                f"{real.encoder}: the controller measures its floor on batch={self.batch} held-out images, and there "
                f"are {there}; set a smaller batch, or posttrain.controller=null"
            )
        found = []
        for draw in range(FLOOR_DRAWS):
            rows = rng.permutation("floor", draw, count=len(real.held_out))[: self.batch]
            some = real.held_out[rows]
            drawn = self.discrepancy.draw(self.batch, 0, draw)
            found.append(self.discrepancy.loss(some, reference, {}, drawn)[1][self.discrepancy.metric])
        return torch.stack(found).mean().item()

    # The state: populations by encoder, and the controller

    def initial_state(self, network: Network, encoders: Any, seed: int) -> State:
        """Return the populations of ``discrepancy.fill`` images of the untouched generator, and a new controller."""
        state = {}
        if self.discrepancy.fill:
            features = self._fill(network, encoders, seed)
            for name, rows in features.items():
                state |= _below(f"population.{name}", self.discrepancy.start(rows))
        if self.controller is not None:
            state |= _below("controller", self._controller(encoders).start().state_dict())
        return state

    @torch.no_grad()
    def _fill(self, network: Network, encoders: Any, seed: int) -> dict[str, Tensor]:
        device = next(network.parameters()).device
        count, size, parts = self.discrepancy.fill, self.micro_batch or FILL_BATCH, []
        labels = (rng.uniform(seed, "fill labels", count=count) * network.classes).long()
        shape = (network.channels, network.resolution, network.resolution)
        for first in range(0, count, size):
            rows = torch.arange(first, min(first + size, count))
            noise = rng.normal_images(seed, "fill", rows=rows, shape=shape, device=device)
            conditions = self.generator.sampling_conditions(rng.key(seed, "fill"), first, len(rows))
            y = labels[rows].to(device)
            parts.append(self._features(network, encoders, self.noise_scale * noise, y, conditions))
        return {name: torch.cat([part[name] for part in parts]) for name in self.encoders}

    def _controller(self, encoders: Any) -> GatedController:
        return GatedController(tuple(encoders.targets[name].floor for name in self.encoders), **self.controller)

    def next_state(self, state: State, observed: Mapping[str, Tensor], step: int) -> State:
        """Return the state in which the new features, detached, have entered the populations."""
        after = {}
        for name in self.encoders if self.discrepancy.fill else ():
            population = _part(state, f"population.{name}")
            after |= _below(f"population.{name}", self.discrepancy.advance(population, observed[f"features.{name}"]))
        if self.controller is not None:
            after |= {f"controller.{name}": observed[f"controller.{name}"][0] for name in _part(state, "controller")}
        return after

    # One training step

    def draw(self, batch: LabelBatch, seed: int, step: int, shard: rng.BatchRows | None = None) -> MatchingDraws:
        """Sample the noise and the conditions of a shard's rows; each depends on (seed, step, global row) only."""
        shard = shard or rng.BatchRows()
        rows, total = shard.rows(len(batch.y)), len(batch.y) * shard.count
        device = batch.y.device
        noise = rng.normal_images(seed, "noise", step, rows=rows, shape=batch.shape, device=device)
        conditions = self.generator.sampling_conditions(rng.key(seed, "conditions"), step * total, total)
        chosen = {name: value[rows].to(device, non_blocking=True) for name, value in conditions.items()}
        return MatchingDraws(self.noise_scale * noise, chosen, self.discrepancy.draw(total, seed, step))

    def __call__(
        self,
        network: Network,
        batch: LabelBatch,
        draws: MatchingDraws,
        encoders: Any,
        state: State | None = None,
        devices: OneDevice = ONE_DEVICE,
    ) -> Losses:
        """Return the weighted sum over encoders of the discrepancy of the global batch.

        Args:
            encoders: a battery with ``targets`` (encoders/battery/battery.py).

        ``scalars`` holds the distance in each encoder, and with a controller its weight. The gradient is that of the
        global batch, whatever the number of devices.
        """
        state = state or {}
        local = self._in_parts(network, encoders, draws, batch.y)
        weights = self._weights(state)
        losses, scalars, scores = {}, {}, []
        for name in self.encoders:
            rows = devices.gather(local[name])
            population = _part(state, f"population.{name}")
            loss, info = self.discrepancy.loss(rows, encoders.targets[name].reference, population, draws.discrepancy)
            losses[name], distance = loss, info[self.discrepancy.metric]
            scalars[f"{self.discrepancy.metric}_{name}"] = distance
            scores.append(distance)
        observed = {f"features.{name}": local[name].detach() for name in self.encoders} if self.discrepancy.fill else {}
        if self.controller is not None:
            scalars |= {f"weight_{name}": weights[name] for name in self.encoders}
            observed |= self._observed_controller(state, encoders, torch.stack(scores), len(batch.y))
        return Losses(weighted_sum(losses, weights), {}, scalars=scalars, observed=observed)

    def _weights(self, state: State) -> dict[str, Number | Tensor]:
        if self.controller is not None and state:
            return dict(zip(self.encoders, state["controller.weights"].float(), strict=True))
        return {name: (self.weights or {}).get(name, 1) for name in self.encoders}

    def _observed_controller(self, state: State, encoders: Any, scores: Tensor, rows: int) -> dict[str, Tensor]:
        """Return the next state of the controller, repeated for each row (``Losses.observed`` holds rows)."""
        if not state:
            return {}
        before = ControllerState.from_state(_part(state, "controller"))
        after = self._controller(encoders).updated(before, scores).state_dict()
        return {f"controller.{name}": value.expand(rows, *value.shape) for name, value in after.items()}

    def _in_parts(self, network: Network, encoders: Any, draws: MatchingDraws, y: Tensor) -> dict[str, Tensor]:
        """Return the features of this device's rows [n,D] by encoder, computed in micro-batches."""

        def features_of(rows: slice) -> dict[str, Tensor]:
            conditions = {name: value[rows] for name, value in draws.conditions.items()}
            return self._features(network, encoders, draws.noise[rows], y[rows], conditions)

        return features_in_parts(features_of, len(y), self.micro_batch)

    def _features(
        self, network: Network, encoders: Any, noise: Image, y: Int64[Tensor, " n"], conditions: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "n d"]]:
        images = self.images(network, noise, y, conditions)
        found = encoders.encode(images, clamp=self.clamp)
        laws = {name: encoders.targets[name].law for name in self.encoders}
        return {name: rows if laws[name] is None else laws[name](rows, y) for name, rows in found.items()}

    # What is said about it

    def describe(self) -> Description:
        """Return the spaces of the loss."""
        return Description(
            conversion="x in one step -> features of x in each encoder",
            target="features of real images",
            compared=f"both as sets, by {type(self.discrepancy).__name__} in {', '.join(self.encoders)}",
            velocity="none; images are made as the generator is sampled, in one step",
            weights=dict(self.weights or {}),
        )

    def counted(self) -> tuple["DistributionMatching", Any]:
        """Return the objective with a mean over pixels in place of encoders and discrepancy."""
        small = replace(self, discrepancy=_PixelMean(), encoders=("pixels",), weights=None, controller=None, joint=None)
        return small, _Pixels()

    def encoder_note(self, encoders: Any) -> str:
        """Return the line that names the loss."""
        law = "" if self.joint is None else ", with the labels"
        return f"post-training by {type(self.discrepancy).__name__}{law} in {', '.join(self.encoders)}"


@dataclass(frozen=True)
class _PixelMean(Discrepancy):
    """The squared distance of the mean to 1, with which the cost of a generator's step is counted."""

    def loss(
        self, features: Tensor, reference: Any, state: State, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distance = (features.mean(0) - 1).square().sum()
        return distance, {"distance": distance.detach()}


class _Pixels:
    """A battery of one encoder, the pixels."""

    targets: ClassVar = {"pixels": Target(None, None)}

    def encode(self, images: Image, clamp: bool) -> dict[str, Tensor]:
        return {"pixels": images.flatten(1)}


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}
