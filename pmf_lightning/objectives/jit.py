"""JiT (arXiv 2511.13720): predict the image, the noise or the velocity, with the loss on any of the three.

Flow matching on the straight path z = (1-t) x + t e. The network predicts x, eps or v. The conversions of
objectives/fields.py turn prediction and ground truth into the quantity of the loss. Sampling integrates dz/dt = v. The
paper's t is our 1 - t.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pmf_lightning.objectives.base import Batch, Description, Draws, Losses, Network, ObjectiveBase
from pmf_lightning.objectives.fields import (
    Image,
    Quantity,
    Time,
    check_clip,
    convert,
    noisy_image,
    path_velocity,
    sum_of_squares,
)
from pmf_lightning.objectives.time_sampling import logit_normal
from pmf_lightning.utils import rng
from pmf_lightning.utils.precision import Number


@dataclass(frozen=True)
class JiTDraws(Draws):
    """The random numbers of one batch: each [B], noise [B,C,H,W] already scaled.

    ``dropout`` holds the key of the dropout masks per row. The scalars may stay on the CPU.
    """

    t: Float[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    drop: Bool[Tensor, " b"]
    dropout: Int64[Tensor, " b"]


# (prediction, loss space) -> the conversion, see objectives/fields.py; {} is the lower bound of divisors.
_CONVERSIONS = {
    ("x", "eps"): "eps = (z - (1 - t) x) / clip(t, {:g}, 1)",
    ("x", "v"): "v = (z - x) / clip(t, {:g}, 1)",
    ("eps", "x"): "x = (z - t eps) / clip(1 - t, {:g}, 1)",
    ("eps", "v"): "v = (eps - z) / clip(1 - t, {:g}, 1)",
    ("v", "x"): "x = z - t v",
    ("v", "eps"): "eps = z + (1 - t) v",
}


@dataclass(frozen=True)
class JiT(ObjectiveBase):
    """The JiT objective; its values are set in conf/objective and conf/model.

    Fields: ``prediction`` the quantity that the network predicts and ``loss`` the quantity of the loss, each "x",
    "eps" or "v" (the paper's table 2); ``noise_scale`` the standard deviation of the noise; ``P_mean``, ``P_std`` the
    logit-normal distribution of t (the paper's mu is -P_mean); ``label_dropout`` the probability of dropping the label,
    per row; ``t_clip`` the floor of divisors, the same for prediction and ground truth, so that a perfect prediction
    has zero loss.

    Raises ValueError for an unknown quantity.
    """

    samplers: ClassVar = ("heun", "euler")  # the first is the paper's
    loss_note: ClassVar = (
        "the loss is a plain mean squared error; loss_v is logged next to it, to compare across losses"
    )
    search_preset: ClassVar = "jit_b16"
    passes_conditions: ClassVar = True
    without_classes: ClassVar = {"objective.label_dropout": 0.0}

    prediction: str
    loss: str
    noise_scale: Number
    P_mean: Number
    P_std: Number
    label_dropout: Number
    t_clip: Number

    def __post_init__(self):
        for name in ("prediction", "loss"):
            if getattr(self, name) not in get_args(Quantity):
                raise ValueError(f"{name}={getattr(self, name)} is not one of {', '.join(get_args(Quantity))}")
        check_clip(self.t_clip)

    def draw(self, batch: Batch, seed: int, step: int, shard: rng.BatchRows | None = None) -> JiTDraws:
        """Sample the random numbers of training step ``step`` for one shard of the global batch (all of it by default).

        Every number depends only on (seed, step, global row). The scalars are on the CPU, the noise is on the device of
        ``batch.x``.
        """
        shard = shard or rng.BatchRows()
        size = len(batch.x)
        total, rows = size * shard.count, shard.rows(size)
        t = logit_normal(rng.normal(seed, "t", step, count=total), self.P_mean, self.P_std)
        drop = rng.uniform(seed, "drop", step, count=total) < self.label_dropout
        noise = rng.normal_images(
            seed, "noise", step, rows=rows, shape=tuple(batch.x.shape[1:]), device=batch.x.device
        ).to(batch.x.dtype)
        keys = (rng.uniform(seed, "dropout", step, count=total) * 2**53).long()
        return JiTDraws(t[rows].to(batch.x.dtype), self.noise_scale * noise, drop[rows], keys[rows])

    def __call__(
        self,
        network: Network,
        batch: Batch,
        draws: JiTDraws,
        encoders: None = None,
        keep_fields: bool = False,
    ) -> Losses:
        """Return the losses of a batch; ``per_sample`` "loss_x", "loss_eps", "loss_v" are sums of squares over C, H, W.

        The total is the mean over batch and pixels of the one named by ``loss`` (JiT, eq. 6 for v). "loss_v" is always
        included, for comparison across losses. With ``keep_fields`` the fields z, answer and v are returned too.
        """
        on = draws.to(batch.x.device)
        z = noisy_image(batch.x, on.noise, on.t)
        y = torch.where(on.drop, network.classes, batch.y)
        answer = self._answer(network, z, on.t, y, dropout=on.dropout, **batch.conditions)
        truth = {"x": batch.x, "eps": on.noise, "v": path_velocity(batch.x, on.noise)}[self.prediction]
        both = {
            name: [convert(field, z, on.t, self.prediction, name, self.t_clip) for field in (answer, truth)]
            for name in dict.fromkeys((self.loss, "v"))
        }
        sums = {f"loss_{name}": sum_of_squares(ours - theirs) for name, (ours, theirs) in both.items()}
        total = sums[f"loss_{self.loss}"].mean() / batch.x[0].numel()
        kept = {"z": z, "answer": answer, "v": both["v"][0]} if keep_fields else None
        return Losses(total, {name: values.detach() for name, values in sums.items()}, kept, t=draws.t)

    def ode_velocity(
        self,
        network: Network,
        z: Image,
        t: float | Tensor,
        y: Int64[Tensor, " b"],
        omega: Number = 1.0,
        t_min: Number = 0.0,
        t_max: Number = 1.0,
    ) -> Image:
        """Return the velocity for sampling at time t: v_u + omega (v_c - v_u) with guidance, else v_c.

        Without guidance (omega = 1) t may be one time per image, [b].
        """
        guided = not isinstance(t, Tensor) and self._guided(t, omega, t_min, t_max)
        if guided:
            z, y = torch.cat((z, z)), torch.cat((y, torch.full_like(y, network.classes)))
        times = t if isinstance(t, Tensor) else z.new_full((z.shape[0],), t)
        v = convert(self._answer(network, z, times, y), z, times, self.prediction, "v", self.t_clip)
        if not guided:
            return v
        v_c, v_u = v.chunk(2)
        return v_u + omega * (v_c - v_u)

    def nfe_per_velocity(self, t: float, omega: Number, t_min: Number, t_max: Number) -> int:
        """Return the network evaluations per image for one velocity at time t: 2 with guidance, else 1."""
        return 2 if self._guided(t, omega, t_min, t_max) else 1

    def describe(self) -> Description:
        """Return the spaces of prediction and loss."""
        given, wanted = self.prediction, self.loss
        converted = "" if given == wanted else f" -> {_CONVERSIONS[given, wanted].format(self.t_clip)}"
        truth = {"x": "x", "eps": "e", "v": "e - x"}[given]
        return Description(
            conversion=f"{given}{converted}",
            target=f"{given} = {truth}{converted}",
            compared=f"{wanted} of the data, {'by the same conversion' if converted else f'{wanted} = {truth}'}",
            velocity="of the output; guidance: label dropout only, v_u + omega (v_c - v_u) when sampling",
        )

    def _guided(self, t: float, omega: Number, t_min: Number, t_max: Number) -> bool:
        """Return whether t is strictly inside the interval; t_max=1 includes pure noise (official code, t = our 1-t).

        With omega = 1 there is no guidance.
        """
        return omega != 1 and t_min < t and (t < t_max or t_max == 1)

    def _answer(self, network: Network, z: Image, t: Time, y: Tensor, **more: Tensor) -> Image:
        return network(z, {"label": y, "t": t, **more}, heads=self.heads)["u"]
