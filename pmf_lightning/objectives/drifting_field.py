"""The drifting field of arXiv 2602.04770: attracts generated samples to real ones and repels them from one another.

V(x) = V+(x) - V-(x), the mean shift towards positives y+ minus the mean shift towards negatives y-, with the kernel
k(x, y) = exp(-|x - y| / temperature). Swapping the two sets flips the sign of V. If they are equal, V is zero.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast

NORMALISATIONS = ("both", "y", "none")
Points = Float[Tensor, "b n s"]
LEAST_DISTANCE = 1e-4
SELF_DISTANCE = 1e6  # added between a sample and itself (algorithm A1), so that it does not interact with itself


@torch.no_grad()
def drifting_field(
    x: Float[Tensor, "..."],
    y_pos: Float[Tensor, "..."],
    y_neg: Float[Tensor, "..."] | None,
    temperature: Number,
    *,
    attraction: Number = 1.0,
    repulsion: Number = 1.0,
    normalisation: str = "both",
) -> Float[Tensor, "..."]:
    """Return V at the samples ``x`` by algorithm A1 without scaling, in the units of ``x``.

    Args:
        x: samples [G,S], or [B,G,S] for B independent problems.
        y_pos: positives [P,S] or [B,P,S].
        y_neg: negatives [N,S] or [B,N,S]. With None, or ``x`` itself, the samples are each other's negatives, and 1e6
            is added to the distance of a sample to itself.
        temperature: of the kernel, a distance in the units of ``x``; above 0.
        attraction, repulsion: factors on V+ and V- (the paper's table 1).
        normalisation: of the kernel, see ``affinities``.

    No gradient flows through V. Raises ValueError for shapes that do not fit and for numbers out of range.
    """
    foreign = y_neg is not None and y_neg is not x
    parts = [x, y_neg if foreign else x, y_pos]
    check_points(dict(zip(("x", "y_neg", "y_pos"), parts, strict=True)), axes=2 if x.ndim == 2 else 3)
    check_options([temperature], attraction, repulsion, normalisation)
    batched = [at_least_float32(part).reshape(-1, *part.shape[-2:]) for part in parts]
    samples, negatives, positives = centred(batched)
    targets = torch.cat((negatives, positives), dim=1)
    with no_autocast(x), full_products():
        distance = distances(samples, targets)
        if not foreign:
            distance.diagonal(dim1=1, dim2=2).add_(SELF_DISTANCE)
        affinity = affinities(-distance / temperature, normalisation, floor=0.0)
        field = mean_shift(affinity, samples, targets, negatives.shape[1], attraction, repulsion)
    return field.reshape(x.shape)


def centred(parts: list[Float[Tensor, "b _ s"]]) -> list[Float[Tensor, "b _ s"]]:
    """Subtract the mean of all points from all sets; the field is unchanged and distances lose less to rounding."""
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    parts = [part.to(dtype) for part in parts]
    middle = sum(part.sum(1, keepdim=True) for part in parts) / sum(part.shape[1] for part in parts)
    return [part - middle for part in parts]


def distances(x: Points, y: Float[Tensor, "b m s"]) -> Float[Tensor, "b n m"]:
    """Return |x - y| for all pairs, at least 1e-4, by one matrix product, without a [b, n, m, s] tensor.

    The squares cancel, so a distance that is small relative to the norms loses digits. Callers centre the points.
    """
    norms = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]
    return torch.baddbmm(norms, x, y.mT, alpha=-2).clamp_min_(LEAST_DISTANCE**2).sqrt_()


def affinities(logits: Float[Tensor, "b n m"], normalisation: str, floor: Number) -> Float[Tensor, "b n m"]:
    """Return the normalised kernel of ``logits`` = -distance / temperature.

    "both": geometric mean of the softmax over targets (last axis) and the softmax over samples (the paper's choice);
    "y": softmax over targets only; "none": exp(logits). Squared affinities are at least ``floor``.
    """
    if normalisation == "both":
        squares = logits.softmax(2).mul_(logits.softmax(1))
    elif normalisation == "y":
        squares = logits.softmax(2).square_()
    else:
        squares = (2 * logits).exp_()
    return squares.clamp_min_(floor).sqrt_()


def mean_shift(
    affinity: Float[Tensor, "b n m"],
    x: Points,
    targets: Float[Tensor, "b m s"],
    negatives: int,
    attraction: Number,
    repulsion: Number,
) -> Points:
    """Return the field at ``x``: sum_j c_j (y_j - x) over ``targets``, of which the first ``negatives`` repel.

    A positive has c = attraction * A * (sum of A over negatives). A negative has c = -repulsion * A * (sum of A over
    positives). The product of both sums normalises V+ and V- alike. With both factors 1, sum_j c_j is zero.
    """
    push, pull = affinity[:, :, :negatives], affinity[:, :, negatives:]
    coefficients = torch.cat(
        (push * (-repulsion * pull.sum(2, keepdim=True)), pull * (attraction * push.sum(2, keepdim=True))), dim=2
    )
    return torch.baddbmm(coefficients.sum(2, keepdim=True) * x, coefficients, targets, beta=-1)


def check_points(sets: dict[str, Tensor], axes: int, may_be_empty: str = "") -> None:
    """Raise ValueError unless all sets are [batch, points, numbers] (two ``axes``: without a batch) and differ only in
    the number of points; only the set named ``may_be_empty`` may have none."""
    shapes = ", ".join(f"{name} {list(points.shape)}" for name, points in sets.items())
    if any(points.ndim != axes for points in sets.values()):
        raise ValueError(f"{shapes}: all need {axes} axes, the last two points and numbers")
    if len({(*points.shape[:-2], points.shape[-1]) for points in sets.values()}) > 1:
        raise ValueError(f"{shapes}: they may differ only in the number of points, the last axis but one")
    if any(not points.numel() for name, points in sets.items() if name != may_be_empty):
        raise ValueError(f"{shapes}: these sets must not be empty")


def check_temperatures(temperatures: Sequence[Number]) -> None:
    """Raise ValueError unless there is a temperature, and all are above 0."""
    if not temperatures or not all(temperature > 0 for temperature in temperatures):
        raise ValueError(f"temperatures={list(temperatures)}: give at least one, all above 0")


def check_options(temperatures: Sequence[Number], attraction: Number, repulsion: Number, normalisation: str) -> None:
    """Raise ValueError for invalid temperatures, factors or normalisation."""
    check_temperatures(temperatures)
    if min(attraction, repulsion) < 0 or attraction == repulsion == 0:
        raise ValueError(f"attraction={attraction} repulsion={repulsion}: neither is below 0, and one is above")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation}: give one of {', '.join(NORMALISATIONS)}")
