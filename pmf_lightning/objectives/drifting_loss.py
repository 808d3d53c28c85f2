"""The loss of drifting models (arXiv 2602.04770) for one feature: regress samples onto themselves plus the field.

loss = mean |x - stopgrad(x + V)|^2 with V the sum of fields at several temperatures, each divided by its own root mean
square. THE VALUE IS NEARLY UNINFORMATIVE: with one temperature its mean over the batch is 1 by construction, with three
it is between 0 and 9, depending on how their directions agree. The norm of the fields before that division shrinks as
samples and data come to agree; ``info["force_norm"]`` is the metric to monitor.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pmf_lightning.objectives.base import ONE_DEVICE
from pmf_lightning.objectives.drifting_field import (
    LEAST_DISTANCE,
    affinities,
    centred,
    check_options,
    check_points,
    distances,
    mean_shift,
)
from pmf_lightning.utils.precision import Number, at_least_float32, full_products, no_autocast

SELF_DISTANCE = 100.0  # added between a sample and itself, in units of the mean distance
LEAST_SCALE = 1e-3
LEAST_FORCE = 1e-8  # floor of mean squared forces, so that rounding does not separate equal sets
Numbers = Float[Tensor, " k"]
Mean = Callable[[Numbers, Numbers], Numbers]


def drift_loss(
    gen: Float[Tensor, "..."],
    pos: Float[Tensor, "..."],
    neg: Float[Tensor, "..."] | None = None,
    weight_gen: Float[Tensor, "..."] | None = None,
    weight_pos: Float[Tensor, "..."] | None = None,
    weight_neg: Float[Tensor, "..."] | None = None,
    temperatures: Sequence[Number] = (0.2, 0.05, 0.02),
    *,
    attraction: Number = 1.0,
    repulsion: Number = 1.0,
    normalisation: str = "both",
    affinity_floor: Number = 1e-6,
    mean: Mean = ONE_DEVICE.mean,
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """Return the loss [B] of B independent problems (labels x locations), and metrics to log.

    Args:
        gen: generated samples [B,G,S]; the only input that gets a gradient. They also repel each other.
        pos: real samples that attract, [B,P,S].
        neg: real samples that repel in addition to the generated ones, [B,N,S]; N may be 0.
        weight_gen, weight_pos, weight_neg: at least 0, [B,G], [B,P], [B,N]; None means ones.
        temperatures: of the kernel, in units of the mean distance.
        attraction, repulsion: factors on the attraction of positives and the repulsion of negatives (the paper's
            table 1).
        normalisation: of the kernel, "both" over targets and samples | "y" over targets | "none"; see ``affinities``.
        affinity_floor: of squared affinities; 0 means none. The official value is 1e-6. For comparison, 64 samples and
            64 positives at equal distances have 1.2e-4. Targets below the floor attract equally, so distant samples are
            attracted to the mean of the data, and samples between distant modes can stay there (toy drift2d).
        mean: turns sums and counts of this process, [k] each, into means over all processes. Called twice, always in
            the same order. The loss has two such means, which couple the samples of a batch and of other processes.

    ``info``, all detached: ``scale``, the mean distance, in the units of the data; ``loss_R`` [temperatures], the mean
    square of each field before normalisation; ``force_norm``, its root. Fields are in units in which the mean distance
    is sqrt(S); times max(scale / sqrt(S), 1e-3) they are in the units of the data.

    Internal arithmetic is float32 or wider. Raises ValueError for shapes that do not fit and values out of range.
    """
    check_points({"gen": gen, "pos": pos} | ({} if neg is None else {"neg": neg}), axes=3, may_be_empty="neg")
    check_options(temperatures, attraction, repulsion, normalisation)
    if not affinity_floor >= 0:
        raise ValueError(f"affinity_floor={affinity_floor}: it is 0 or more")
    neg = gen.detach()[:, :0] if neg is None else neg
    sets = {"gen": (gen, weight_gen), "neg": (neg, weight_neg), "pos": (pos, weight_pos)}
    with torch.no_grad(), no_autocast(gen), full_products():
        x, negatives, positives = centred([at_least_float32(points) for points, _ in sets.values()])
        targets = torch.cat((x, negatives, positives), dim=1)
        weights = torch.cat([_weights(name, *given, x.dtype) for name, given in sets.items()], dim=1)
        distance = distances(x, targets)
        itself = distance.diagonal(dim1=1, dim2=2)
        itself.fill_(LEAST_DISTANCE)  # otherwise about 1e-3 from rounding
        scale = _scale(distance, weights, mean)
        unit = (scale / x.shape[2] ** 0.5).clamp_min(LEAST_SCALE)
        distance /= scale.clamp_min(LEAST_SCALE)
        itself.add_(SELF_DISTANCE)
        forces = []
        for temperature in temperatures:
            affinity = affinities(-distance / temperature, normalisation, affinity_floor) * weights[:, None]
            pushing = x.shape[1] + negatives.shape[1]
            forces.append(mean_shift(affinity, x, targets, pushing, attraction, repulsion) / unit)
        squares = _mean_squares(forces, mean)
        force = sum(f / norm for f, norm in zip(forces, squares.clamp_min(LEAST_FORCE).sqrt(), strict=True))
    wide = gen.to(x.dtype)
    step = (wide - wide.detach()) / unit - force  # x - (x + V), without the rounding error of x + V
    return step.square().mean((1, 2)), {"scale": scale, "loss_R": squares, "force_norm": squares.sqrt()}


def _weights(name: str, points: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Float[Tensor, "b n"]:
    if weight is None:
        return points.new_ones(points.shape[:2], dtype=dtype)
    if weight.shape != points.shape[:2]:
        raise ValueError(f"weight_{name} {list(weight.shape)} does not fit {name} {list(points.shape)}: one per point")
    return weight.to(dtype)


def _scale(distance: Float[Tensor, "b g t"], weights: Float[Tensor, "b t"], mean: Mean) -> Float[Tensor, ""]:
    """Return the weighted mean distance over all pairs, a single scalar for all problems."""
    sums = torch.stack(((distance * weights[:, None]).sum(), weights.sum()))
    counts = torch.stack([sums.new_full((), points.numel()) for points in (distance, weights)])  # no copy from the CPU
    above, below = mean(sums, counts)
    return above / below


def _mean_squares(forces: Sequence[Float[Tensor, "b g s"]], mean: Mean) -> Numbers:
    sums = torch.stack([force.square().sum() for force in forces])
    return mean(sums, sums.new_full(sums.shape, forces[0].numel()))
