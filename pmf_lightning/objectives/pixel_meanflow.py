"""Pixel MeanFlow (arXiv 2601.22158): predict an image, regress the velocity of a guided flow.

The network predicts an image-like X(z, h, omega, t_min, t_max, y) with h = t - r. The average velocity is
u = (z - X) / clip(t, t_clip, 1). The loss compares V = u + (t - r) du/dt with the guided velocity v_g. An auxiliary
head predicts the instantaneous v, which guidance and the direction of the derivative need. Improved MeanFlow (iMF,
arXiv 2512.02012) is the same with other options: a network that predicts u, the plain target e - x, and another
distribution of times.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.profiler import record_function

from pmf_lightning.objectives.base import (
    Batch,
    Description,
    Distance,
    EncoderRequest,
    Losses,
    Network,
    ObjectiveBase,
)
from pmf_lightning.objectives.crops import UNIFORMS, CropLaw, crop_boxes
from pmf_lightning.objectives.fields import (
    Image,
    Time,
    check_clip,
    compound_velocity,
    expand_like,
    noisy_image,
    path_velocity,
    rows_of,
    sum_of_squares,
    velocity_from_image,
)
from pmf_lightning.objectives.guidance import adaptive_weight, guidance_scale, guided_velocity, omega_in_interval
from pmf_lightning.objectives.jvp.derivative import Form, velocities_and_derivative
from pmf_lightning.objectives.meanflow_draws import MeanFlowDraws, RowMasks
from pmf_lightning.objectives.meanflow_reference import describe, textbook_loss
from pmf_lightning.objectives.perceptual import perceptual_distances
from pmf_lightning.objectives.preconditioners import Preconditioner, preconditioned
from pmf_lightning.objectives.time_sampling import ORDERS, logit_normal
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number

CHOICES = {
    "prediction": ("x", "u"),
    "jvp": get_args(Form),
    "v_target": ("clipped", "plain"),
    "v_source": ("head", "boundary"),
    "jvp_tangent": ("network", "target"),
    "time_order": tuple(ORDERS),
    "r_law": ("any", "zero"),
}


@dataclass(frozen=True)
class PixelMeanFlow(ObjectiveBase):
    """The pixel MeanFlow objective; its values are set in conf/objective and conf/model.

    Fields: ``prediction`` "x" (the network predicts images) or "u" (velocities); ``noise_scale`` the standard deviation
    of the noise; ``P_mean``, ``P_std`` the logit-normal distribution of t and r; ``uniform_fraction`` of rows whose t
    and r are uniform instead; ``flow_matching_fraction`` of the batch with r = t (flow matching); ``omega_min``,
    ``omega_max``, ``omega_beta`` the distribution of the guidance scale; ``label_dropout`` the probability of dropping
    the label; ``t_clip`` the floor of divisors; ``weight_power``, ``weight_eps`` the adaptive weight; ``jvp`` the form
    of du/dt.

    Variants: ``v_target`` v_t "clipped", (z - x) / clip(t), or "plain", e - x. ``v_source`` v from a separate "head",
    or at the "boundary", v = u(z, t, t), without that head (iMF, step 2). ``time_order`` of tying and sorting
    (time_sampling.py). ``r_law`` of the rows that are not tied, "any" or "zero" (pMF, table 3b). ``preconditioner`` of
    an x-prediction. ``jvp_tangent`` the direction of du/dt: the "network"'s v (iMF, eq. 12) or the "target" v_g, which
    is e - x without guidance and gives the gradient of the original MeanFlow's loss (iMF, eq. 9 and 10).
    ``sample_interval`` whether the guidance interval [t_min, t_max] is sampled, or is [0, 1] in all rows (iMF before
    its last condition). ``perceptual`` the weight of each perceptual distance, which is applied where t < ``t_thr``, on
    crops of the distribution ``crop``.

    Raises ValueError for an unknown option or an incompatible combination.
    """

    samplers: ClassVar = ("average", "heun", "euler")  # the first is the paper's
    sampling_heads: ClassVar = ("u",)
    passes_conditions: ClassVar = True
    changeable_fields: ClassVar = ("jvp",)  # its forms compute the same numbers
    fields_without_effect: ClassVar = ("jvp",)
    mapping_fields: ClassVar = ("perceptual",)
    without_classes: ClassVar = {
        "objective.label_dropout": 0.0,
        "objective.omega_min": 1.0,
        "objective.omega_max": 1.0,
    }
    loss_note: ClassVar = (
        "loss_u and loss_v are plain mean squared errors; the adaptive loss minimised is about 2 by construction"
    )

    prediction: str
    noise_scale: Number
    P_mean: Number
    P_std: Number
    uniform_fraction: Number
    flow_matching_fraction: Number
    omega_min: Number
    omega_max: Number
    omega_beta: Number
    label_dropout: Number
    t_clip: Number
    weight_power: Number
    weight_eps: Number
    jvp: str
    v_target: str
    v_source: str
    jvp_tangent: str
    sample_interval: bool
    time_order: str
    r_law: str
    preconditioner: Preconditioner | None
    perceptual: Mapping[str, Number]
    t_thr: Number
    crop: CropLaw | None

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)} is not one of {', '.join(known)}")
        if self.preconditioner is not None and self.prediction != "x":
            raise ValueError(f"prediction={self.prediction}: a pre-conditioner makes images; take preconditioner=none")
        if not 1 <= self.omega_min <= self.omega_max:
            raise ValueError(
                f"omega_min={self.omega_min} omega_max={self.omega_max}: scales begin at 1, no guidance, and "
                "omega_max is not below omega_min"
            )
        check_clip(self.t_clip)
        if not 0 < self.t_thr <= 1:
            raise ValueError(f"t_thr={self.t_thr}: perceptual distances count below a time in (0, 1]")
        for name, weight in self.perceptual.items():
            if not weight > 0:
                raise ValueError(
                    f"objective.perceptual.{name}={weight}: a weight is above 0; choose perceptual=none, or another"
                )
        if self.perceptual and self.crop is None:
            raise ValueError(f"perceptual={dict(self.perceptual)} needs the law of crops; choose perceptual=<a name>")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the backbone that are trained."""
        return ("u", "v") if self.v_source == "head" else ("u",)

    @property
    def encoder_request(self) -> EncoderRequest | None:
        """The perceptual distances."""
        return EncoderRequest("features", tuple(self.perceptual)) if self.perceptual else None

    @property
    def search_preset(self) -> str:
        """The preset of pMF, or of iMF."""
        return "pmf_b16" if self.prediction == "x" else "imf_b2"

    def draw(self, batch: Batch, seed: int, step: int, shard: rng.BatchRows | None = None) -> MeanFlowDraws:
        """Sample the random numbers of training step ``step`` for one shard of the global batch (all of it by default).

        Every number depends only on (seed, step, global row). The first rows of the GLOBAL batch are tied, and the
        first of these lose their label, as in the official code; each shard has an equal share of them. The scalars
        are on the CPU, the noise is on the device of ``batch.x``.
        """
        shard = shard or rng.BatchRows()
        size = len(batch.x)
        total, rows = size * shard.count, shard.rows(size)

        def uniform(name: str) -> Tensor:
            return rng.uniform(seed, name, step, count=total)

        a, b = (logit_normal(rng.normal(seed, n, step, count=total), self.P_mean, self.P_std) for n in "tr")
        if self.uniform_fraction:
            replaced = uniform("replaced") < self.uniform_fraction  # one decision for both times, as the official code
            a, b = torch.where(replaced, uniform("t uniform"), a), torch.where(replaced, uniform("r uniform"), b)
        if self.r_law == "zero":
            b = torch.zeros_like(b)
        position = torch.arange(total)
        tied = position < int(total * self.flow_matching_fraction)
        t, r = ORDERS[self.time_order](a, b, tied)
        omega = guidance_scale(uniform("omega"), self.omega_max, self.omega_beta, self.omega_min)
        whole = tied | (not self.sample_interval)
        t_min = torch.where(whole, 0.0, 0.5 * uniform("t_min"))
        t_max = torch.where(whole, 1.0, 0.5 + 0.5 * uniform("t_max"))
        drop = position < (uniform("drop") < self.label_dropout).sum()
        noise = rng.normal_images(
            seed, "noise", step, rows=rows, shape=tuple(batch.x.shape[1:]), device=batch.x.device
        ).to(batch.x.dtype)
        scalars = (values[rows].to(batch.x.dtype) for values in (t, r, omega, t_min, t_max))
        t, r, omega, t_min, t_max = scalars
        crops = None
        if self.perceptual:
            numbers = rng.uniform(seed, "crop", step, count=total * UNIFORMS).view(total, UNIFORMS)
            crops = crop_boxes(numbers[rows], *batch.x.shape[2:], self.crop).to(batch.x.dtype)
        return MeanFlowDraws(t, r, self.noise_scale * noise, omega, t_min, t_max, drop[rows], crops)

    def average_velocity(self, network: Network, z, t, r, omega, t_min, t_max, y) -> Image:
        """Return u only, for sampling, without computing the v-head."""
        return self.velocities(network, z, t, r, omega, t_min, t_max, y, heads=("u",))["u"]

    def ode_velocity(
        self,
        network: Network,
        z: Image,
        t: float,
        y: Int64[Tensor, " b"],
        omega: Number = 1.0,
        t_min: Number = 0.0,
        t_max: Number = 1.0,
    ) -> Image:
        """Return u(z, t, t) = v(z, t), the velocity of the sampling ODE, guided through the conditions."""
        times, *conditions = (z.new_full((len(z),), value) for value in (t, omega, t_min, t_max))
        return self.average_velocity(network, z, times, times, *conditions, y)

    def encoder_note(self, encoders: Mapping[str, Distance] | None) -> str | None:
        """Return the line that lists the perceptual distances."""
        if not encoders:
            return None
        terms = (f"{self.perceptual[name]:g} {name} ({distance.side} pixels)" for name, distance in encoders.items())
        return f"perceptual loss where t < {self.t_thr:g}, in random crops: {', '.join(terms)}"

    def describe(self) -> Description:
        """Return the spaces of prediction and loss; see objectives/meanflow_reference.py."""
        return describe(self)

    def counted(self) -> tuple["PixelMeanFlow", None]:
        """Return the objective without perceptual distances."""
        return (replace(self, perceptual={}) if self.perceptual else self), None

    def with_activation_checkpointing(self) -> "PixelMeanFlow":
        """Return the objective with its derivative in a separate pass, since no derivative passes a recomputation."""
        return replace(self, jvp="two_pass")

    def textbook_loss(self, network: Network, batch: Batch, draws: MeanFlowDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the algorithm as printed; see objectives/meanflow_reference.py."""
        return textbook_loss(self, network, batch, draws)

    def velocities(
        self, network, z, t, r, omega, t_min, t_max, y, heads, attention=None, more: Mapping[str, Tensor] | None = None
    ) -> dict[str, Image]:
        """Run the network and convert its outputs to velocities; with v_source="boundary", "v" is the output "u".

        ``more`` are conditions besides those of the objective.
        """
        # The guidance scale enters as 1 - 1/omega, the weight of the correction. Networks ignore unused conditions:
        # those of pMF and iMF get the time only as h, since t can be inferred from a noisy image.
        conditions = {"label": y, "omega": 1 - 1 / omega, "t_min": t_min, "t_max": t_max, "t": t, "h": t - r}
        conditions |= more or {}
        known = heads if self.v_source == "head" else ("u",)
        raw = network(z, conditions, heads=known, attention=attention)
        fields = {head: self._as_velocity(z, answer, t) for head, answer in raw.items()}
        return fields if self.v_source == "head" else dict.fromkeys(heads, fields["u"])

    def _as_velocity(self, z: Image, answer: Image, t: Time) -> Image:
        if self.prediction == "u":
            return answer
        X = answer if self.preconditioner is None else preconditioned(self.preconditioner, z, answer, t)
        return velocity_from_image(z, X, t, self.t_clip)

    def __call__(
        self,
        network: Network,
        batch: Batch,
        draws: MeanFlowDraws,
        encoders: Mapping[str, Distance] | None = None,
        keep_fields: bool = False,
    ) -> Losses:
        """Return the losses of a batch: ``per_sample`` "loss_u", "loss_v" are sums over C, H, W of squared errors.

        With v_source="boundary" there is no "loss_v". Rows with t == r are flow-matching rows, at any position. Dropped
        rows lose label and guidance here. With ``keep_fields`` the fields z, v_g, v_c, u, v, V, du_dt are returned too.
        Values without effect are unspecified: du_dt where t == r, v_c of dropped rows with t == r, v of the boundary
        where t != r.

        Raises ValueError unless the names in ``encoders`` are those in ``perceptual``.
        """
        encoders = encoders or {}
        if encoders.keys() != self.perceptual.keys():
            raise ValueError(
                f"the distances weighed are ({', '.join(self.perceptual)}), encoders= gives ({', '.join(encoders)}); "
                "give the same names, or take perceptual=none"
            )
        on = draws.to(batch.x.device)
        z = noisy_image(batch.x, on.noise, on.t)
        plain = self.v_target == "plain"
        v_t = path_velocity(batch.x, on.noise) if plain else velocity_from_image(z, batch.x, on.t, self.t_clip)
        y = torch.where(on.drop, network.classes, batch.y)

        omega = omega_in_interval(draws.t, draws.omega, draws.t_min, draws.t_max)
        masks = RowMasks.of(draws, omega, self.jvp_tangent)
        # Copied once, without waiting: a blocking copy waits for all the work that the device has still to do.
        chosen = (omega, masks.guided, masks.ask_c)
        on_omega, on_guided, on_ask_c = (each.to(z.device, non_blocking=True) for each in chosen)
        with record_function("guidance"):  # label in profiler traces
            v_c, v_u = self._guidance(network, batch, z, on.t, on_omega, masks.ask_c, masks.guided)

        def velocities(z, t, r, rows, with_v, attention):
            conditions = on.omega[rows], on.t_min[rows], on.t_max[rows], y[rows]
            heads = ("u", "v") if with_v else ("u",)
            answer = self.velocities(network, z, t, r, *conditions, heads, attention, batch.conditions_of(rows))
            return answer["u"], answer.get("v")

        def target(v_c):
            v_g = guided_velocity(v_t, v_c, v_u, on_omega)
            return torch.where(expand_like(on_guided, z), v_g, v_t)

        tangent = (v_c if self.jvp_tangent == "network" else target(v_c))[rows_of(masks.moving, z)]
        u, v, du_dt = velocities_and_derivative(velocities, z, on.t, on.r, tangent, masks.moving, self.jvp)
        v_c = torch.where(expand_like(on_ask_c, z), v_c, v.detach())
        v_g = target(v_c)
        V = compound_velocity(u, du_dt, on.t, on.r)
        kept = {"z": z, "v_g": v_g, "v_c": v_c, "u": u, "v": v, "V": V, "du_dt": du_dt} if keep_fields else None
        errors = {"loss_u": V - v_g} | ({"loss_v": v - v_g} if self.v_source == "head" else {})
        near = rows_of(draws.t < self.t_thr, z) if encoders else None
        distances = perceptual_distances(encoders, z, u, on.t, batch.x, on.crops, near) if encoders else {}
        losses = self._losses(errors, distances, {"du_dt": sum_of_squares(du_dt)}, kept)
        return replace(losses, t=draws.t, diagnostic_rows=masks.moving)

    def _guidance(self, network, batch, z, t, omega, ask_c, ask_u) -> tuple[Image, Image]:
        """Return v_c (label, scale omega) on rows ``ask_c`` and v_u (no label, scale 1) on ``ask_u``, zero elsewhere.

        One pass through trunk and v-head, at h = 0 and the full interval, without a graph. ``omega`` is on the device
        of ``z``; the masks may be on the CPU.
        """
        rows_c, rows_u = rows_of(ask_c, z), rows_of(ask_u, z)
        rows = torch.cat((rows_c, rows_u))
        v_c = v_u = torch.zeros_like(z)
        if len(rows):
            labels = torch.cat((batch.y[rows_c], torch.full_like(rows_u, network.classes)))
            scales = torch.cat((omega[rows_c], torch.ones_like(t[rows_u])))
            more, t = batch.conditions_of(rows), t[rows]
            interval = torch.zeros_like(t), torch.ones_like(t)
            with torch.no_grad():
                v = self.velocities(network, z[rows], t, t, scales, *interval, labels, ("v",), more=more)["v"]
            v = v.to(z.dtype)
            v_c, v_u = v_c.index_copy(0, rows_c, v[: len(rows_c)]), v_u.index_copy(0, rows_u, v[len(rows_c) :])
        return v_c, v_u

    def _losses(self, errors, distances, diagnostics, kept: dict[str, Image] | None) -> Losses:
        """Sum the adaptively weighted terms: weight 1 for squared errors, ``perceptual`` for distances."""
        sums = {name: sum_of_squares(error) for name, error in errors.items()}
        terms = [adaptive_weight(loss, self.weight_power, self.weight_eps) for loss in sums.values()]
        for name, distance in distances.items():
            terms.append(self.perceptual[name] * adaptive_weight(distance, self.weight_power, self.weight_eps))
        per_sample, distances = ({n: value.detach() for n, value in d.items()} for d in (sums, distances))
        return Losses(sum(terms).mean(), per_sample, kept, distances, diagnostics)
