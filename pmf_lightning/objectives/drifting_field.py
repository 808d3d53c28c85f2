"""The drifting field of arXiv 2602.04770: generated samples are pulled to real ones and pushed off one another.

V(x) = V+(x) - V-(x), the mean shift towards positives y+ minus that towards negatives y-, with the kernel
k(x, y) = exp(-|x - y| / temperature). Swapping the two sets flips the sign of V; where they are equal, V is zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast

NORMALISATIONS = ("both", "y", "none")
Points = Float[Tensor, "b n s"]
LEAST_DISTANCE = 1e-4
SELF_DISTANCE = 1e6  # added between a sample and itself (algorithm A1): it neither holds nor pushes itself


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
    """Return V at the samples ``x``: the plain form of algorithm A1, without any scaling, in the units of ``x``.

    Args:
        x: samples [G,S], or [B,G,S] for B independent problems.
        y_pos: positives [P,S] or [B,P,S].
        y_neg: negatives [N,S] or [B,N,S]. None, or ``x`` itself: the samples are each other's negatives, and a sample
            is kept 1e6 away from itself.
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
    """Subtract from all sets the mean of all points: the field does not change, and distances lose less to rounding."""
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    parts = [part.to(dtype) for part in parts]
    middle = sum(part.sum(1, keepdim=True) for part in parts) / sum(part.shape[1] for part in parts)
    return [part - middle for part in parts]


def distances(x: Points, y: Float[Tensor, "b m s"]) -> Float[Tensor, "b n m"]:
    """Return |x - y| for all pairs, at least 1e-4, by one matrix product: nothing of size [b, n, m, s] is made.

    The squares cancel, so a distance that is small beside the norms loses digits; callers centre the points.
    """
    norms = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]
    return torch.baddbmm(norms, x, y.mT, alpha=-2).clamp_min_(LEAST_DISTANCE**2).sqrt_()


def affinities(logits: Float[Tensor, "b n m"], normalisation: str, floor: Number) -> Float[Tensor, "b n m"]:
    """Return the kernel, of ``logits`` = -distance / temperature, made relative.

    "both": the geometric mean of the softmax over targets (last axis) and that over samples (the paper's);
    "y": the softmax over targets alone; "none": exp(logits) as it is. Squared affinities are at least ``floor``.
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
    """Return the field at ``x``: sum_j c_j (y_j - x) over ``targets``, of which the first ``negatives`` push.

    A positive has c = attraction * A * (sum of A over negatives), a negative c = -repulsion * A * (sum of A over
    positives): the product of both sums is what normalises V+ and V- alike. The two factors at 1 make sum_j c_j zero.
    """
    push, pull = affinity[:, :, :negatives], affinity[:, :, negatives:]
    coefficients = torch.cat(
        (push * (-repulsion * pull.sum(2, keepdim=True)), pull * (attraction * push.sum(2, keepdim=True))), dim=2
    )
    return torch.baddbmm(coefficients.sum(2, keepdim=True) * x, coefficients, targets, beta=-1)


def check_points(sets: dict[str, Tensor], axes: int, may_be_empty: str = "") -> None:
    """Raise ValueError unless all sets are [batch, points, numbers] (two ``axes``: without a batch), alike but in the
    number of points; the one called ``may_be_empty`` may have none."""
    shapes = ", ".join(f"{name} {list(points.shape)}" for name, points in sets.items())
    if any(points.ndim != axes for points in sets.values()):
        raise ValueError(f"{shapes}: all need {axes} axes, the last two points and numbers")
    if len({(*points.shape[:-2], points.shape[-1]) for points in sets.values()}) > 1:
        raise ValueError(f"{shapes}: they may differ only in the number of points, the last axis but one")
    if any(not points.numel() for name, points in sets.items() if name != may_be_empty):
        raise ValueError(f"{shapes}: these sets must not be empty")


def check_options(temperatures: list[Number], attraction: Number, repulsion: Number, normalisation: str) -> None:
    """Raise ValueError for options that make no field."""
    if not temperatures or not all(temperature > 0 for temperature in temperatures):
        raise ValueError(f"temperatures {temperatures}: give at least one, all above 0")
    if min(attraction, repulsion) < 0 or attraction == repulsion == 0:
        raise ValueError(f"attraction {attraction}, repulsion {repulsion}: neither is below 0, and one is above")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation {normalisation!r}: unknown; use one of {', '.join(NORMALISATIONS)}")
