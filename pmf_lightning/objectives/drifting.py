"""Drifting (arXiv 2602.04770): a one-step generator trained by moving its samples along a drifting field.

For each label the generator makes G images from noise in one evaluation. In every feature map, at every location, the
field attracts them to real images of the class and repels them from one another and from real images of any class. The
weight of the latter follows from alpha, the guidance strength, which is an input of the generator. Sampling takes one
evaluation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.objectives.base import (
    ONE_DEVICE,
    Description,
    Draws,
    EncoderRequest,
    Losses,
    Network,
    ObjectiveBase,
    OneDevice,
    QueueBatch,
)
from pmf_lightning.objectives.drifting_field import check_options
from pmf_lightning.objectives.drifting_loss import drift_loss
from pmf_lightning.objectives.fields import Image
from pmf_lightning.objectives.guidance import guidance_scale
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number, at_least_float32


@dataclass(frozen=True)
class DriftingDraws(Draws):
    """The random numbers of ``n`` labels: alpha [n], noise [n,G,C,H,W] already scaled, style [n,G,codes]."""

    alpha: Float[Tensor, " n"]
    noise: Float[Tensor, "n g c h w"]
    style: Int64[Tensor, "n g codes"]


Features = Callable[[Image], Mapping[str, Float[Tensor, "b locations channels"]]]


@dataclass(frozen=True)
class Drifting(ObjectiveBase):
    """The Drifting objective; its values are set in conf/objective and conf/model.

    Fields: ``samples_per_label`` images per label, G; ``noise_scale`` the standard deviation of the noise;
    ``alpha_max``, ``alpha_power`` the distribution of alpha in [1, alpha_max], density ~ alpha^-power, but 1 for a
    fraction ``unguided_fraction`` of the labels; ``style_codes`` the number of style codes per image, with
    ``style_values`` values each; ``temperatures`` of the kernel; ``attraction``, ``repulsion``, ``normalisation``,
    ``affinity_floor``: see drift_loss.

    Raises ValueError for values out of range.
    """

    data: ClassVar = "class_queues"
    config_groups: ClassVar = ("queues", "drift_features")
    encoder_request: ClassVar = EncoderRequest("drift_features")
    samplers: ClassVar = ("one_step",)
    needs_global_batch: ClassVar = True  # the loss has means over the global batch
    search_preset: ClassVar = "drifting_b16"
    # Real images of any class repel only when alpha > 1; of one class they would repel from what attracts.
    without_classes: ClassVar = {"objective.alpha_max": 1.0, "queues.negatives": 0}
    loss_note: ClassVar = (
        "the loss is nearly constant by construction: watch force_norm, the pull before normalisation, by temperature"
    )

    samples_per_label: int
    noise_scale: Number
    alpha_max: Number
    alpha_power: Number
    unguided_fraction: Number
    style_codes: int
    style_values: int
    temperatures: Sequence[Number]
    attraction: Number
    repulsion: Number
    normalisation: str
    affinity_floor: Number

    def __post_init__(self):
        check_options(self.temperatures, self.attraction, self.repulsion, self.normalisation)
        if self.samples_per_label < 2:
            raise ValueError(
                f"samples_per_label={self.samples_per_label}: samples push one another, at least 2 are needed"
            )
        if self.alpha_max < 1:
            raise ValueError(f"alpha_max={self.alpha_max}: alpha is 1 (no guidance) or more")
        if not 0 <= self.unguided_fraction <= 1:
            raise ValueError(f"unguided_fraction={self.unguided_fraction}: it is a share of the labels, from 0 to 1")
        if self.style_codes < 0 or (self.style_codes and self.style_values < 1):
            raise ValueError(
                f"style_codes={self.style_codes} style_values={self.style_values}: give 0 codes, or codes with rows"
            )

    @property
    def images_per_label(self) -> int:
        """The number of images that the network makes for a label."""
        return self.samples_per_label

    def draw(self, batch: QueueBatch, seed: int, step: int, shard: rng.BatchRows | None = None) -> DriftingDraws:
        """Sample the random numbers of training step ``step`` for one shard of its labels (all by default).

        Every number depends only on (seed, step, global index of the label). Scalars are on the CPU, the noise is on
        the device of ``batch.x``.
        """
        shard = shard or rng.BatchRows()
        size, G = len(batch.y), self.samples_per_label
        total, rows = size * shard.count, shard.rows(size)
        alpha = guidance_scale(rng.uniform(seed, "alpha", step, count=total), self.alpha_max, self.alpha_power)
        alpha = torch.where(rng.uniform(seed, "alpha one", step, count=total) < self.unguided_fraction, 1.0, alpha)
        images = (rows[:, None] * G + torch.arange(G)).flatten()
        noise = rng.normal_images(
            seed, "noise", step, rows=images, shape=tuple(batch.x.shape[2:]), device=batch.x.device
        ).to(batch.x.dtype)
        codes = rng.uniform(seed, "style", step, count=total * G * self.style_codes) * self.style_values
        style = codes.long().view(total, G, self.style_codes)[rows]
        return DriftingDraws(alpha[rows].to(batch.x.dtype), self.noise_scale * noise.unflatten(0, (-1, G)), style)

    def __call__(
        self,
        network: Network,
        batch: QueueBatch,
        draws: DriftingDraws,
        encoders: Features,
        keep_fields: bool = False,
        devices: OneDevice = ONE_DEVICE,
    ) -> Losses:
        """Return the loss, summed over features, and metrics to log as ``scalars``.

        "force_norm_R" is, per temperature R, the mean over features of the root mean square of the field before
        normalisation. "scale" is the mean over features of the mean distance. ``devices`` reduces the means of several
        processes. With ``keep_fields`` the generated images are returned as "x", [n G,C,H,W].
        """
        on = draws.to(batch.x.device)
        G, P, N = self.samples_per_label, batch.x.shape[1], batch.negatives.shape[1]
        y, alpha = (value.repeat_interleave(G) for value in (batch.y, on.alpha))
        images = self.images(network, on.noise.flatten(0, 1), y, alpha, on.style.flatten(0, 1))
        with torch.no_grad():
            real = encoders(torch.cat((batch.x, batch.negatives), dim=1).flatten(0, 1))
        weight = (on.alpha - 1) * (G - 1) / max(1, N)
        losses, infos = [], []
        for name, made in encoders(images).items():
            gen, others = _problems(made, G), _problems(real[name], P + N)
            each = weight.repeat_interleave(made.shape[1])[:, None].expand(-1, N)
            loss, info = drift_loss(
                gen,
                others[:, :P],
                others[:, P:],
                weight_neg=each,
                temperatures=self.temperatures,
                attraction=self.attraction,
                repulsion=self.repulsion,
                normalisation=self.normalisation,
                affinity_floor=self.affinity_floor,
                mean=devices.mean,
            )
            losses.append(loss.mean())
            infos.append(info)
        norms = torch.stack([info["force_norm"] for info in infos]).mean(0)
        scalars = {f"force_norm_{R:g}": norm for R, norm in zip(self.temperatures, norms, strict=True)}
        scalars["scale"] = torch.stack([info["scale"] for info in infos]).mean()
        kept = {"x": images.detach()} if keep_fields else None
        return Losses(torch.stack(losses).sum(), {}, kept, scalars=scalars)

    def images(
        self,
        network: Network,
        noise: Image,
        y: Int64[Tensor, " b"],
        alpha: Float[Tensor, " b"],
        style: Int64[Tensor, "b codes"],
    ) -> Image:
        """Return the generator's output for noise, [b,C,H,W]: images in about [-1, 1], not clipped."""
        return network(noise, {"label": y, "alpha": alpha, "style": style}, heads=self.heads)["u"]

    def one_step(
        self, network: Network, noise: Image, y: Tensor, alpha: Number | Tensor, style: Tensor | None = None
    ) -> Image:
        """Return images at guidance strength ``alpha``, one or [b]; styles need ``style`` [b,codes]."""
        if style is None:
            if self.style_codes:
                raise ValueError(
                    f"style_codes={self.style_codes}: give conditions={{'style': ...}}, see sampling_conditions"
                )
            style = y.new_zeros(y.shape[0], 0)
        strength = alpha if isinstance(alpha, Tensor) else noise.new_full((y.shape[0],), alpha)
        return self.images(network, noise, y, strength, style.to(y.device))

    def sampling_conditions(self, seed: int, first: int, count: int) -> dict[str, Int64[Tensor, "count codes"]]:
        """Return the styles of images first ... first + count - 1; those of image i depend only on (seed, i)."""
        codes = [rng.uniform(seed, "image style", i, count=self.style_codes) for i in range(first, first + count)]
        return {"style": (torch.stack(codes) * self.style_values).long()}

    def counted(self) -> tuple["Drifting", Features]:
        """Return the objective with pixels as its only feature."""
        return self, pixel_features

    def describe(self) -> Description:
        """Return the spaces of the drifting loss."""
        return Description(
            conversion="x",
            target="x + V",
            compared="x + V, where the drifting field takes it, in every feature",
            velocity="none, x in one evaluation; guidance: alpha, a condition, decides how far other real images repel",
        )


def pixel_features(images: Image) -> dict[str, Float[Tensor, "b 1 pixels"]]:
    """Return the features without an encoder: "global", the pixels as one vector of rows, columns, channels."""
    return {"global": at_least_float32(images).permute(0, 2, 3, 1).flatten(1)[:, None]}


def _problems(features: Float[Tensor, "rows locations channels"], points: int) -> Float[Tensor, "b points channels"]:
    """Treat every location of every label as a separate problem: [n points, T, D] to [n T, points, D]."""
    return features.unflatten(0, (-1, points)).transpose(1, 2).flatten(0, 1)
