"""Schedules: the learning rate by step, and the EMA decay for a half-life in images."""

import math

from pmf_lightning.utils.errors import UserError

DECAYS = ("linear", "cosine")


def rate_factor(
    step: int,
    steps: int,
    warmup_fraction: int | float,
    decay_fraction: int | float,
    first: float = 0.0,
    decay: str = "linear",
) -> float:
    """Return the factor on the learning rate of step ``step`` (from 0) of ``steps``.

    It rises linearly from ``first`` (step 0) to 1 (step ``warmup_fraction`` x ``steps``), as in the official codes of
    iMF, JiT and Drifting. It falls towards 0 over the last fraction ``decay_fraction`` of the steps, linearly or, with
    ``decay`` "cosine", by half a cosine (FD-loss). With both fractions 0 the rate is constant, as in pMF.
    """
    rise = first + (1 - first) * step / (warmup_fraction * steps) if warmup_fraction else 1.0
    fall = (steps - step) / (decay_fraction * steps) if decay_fraction else 1.0
    if decay == "cosine":
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, fall))
    return min(1.0, rise, fall)


def ema_beta(
    images_seen: int | float, batch: int | float, half_life_images: int | float, rampup_ratio: int | float | None = 0.05
) -> float:
    """Return the EMA decay of this step, the weight of the previous average.

    ``images_seen`` counts the images up to and including this step, ``batch`` those of this step (the actual global
    batch). Early in training the half-life is limited to ``rampup_ratio`` times the images seen; with None it is the
    full half-life from the start (iMF). A half-life or batch that is not positive raises UserError. Source: Karras et
    al. 2022 (EDM), whose training loop pMF follows.
    """
    for name, value in (("half_life_images", half_life_images), ("batch", batch)):
        if value <= 0:
            raise UserError(f"the moving average's {name} is {value}; it must be positive")
    if rampup_ratio is None:
        return 0.5 ** (batch / half_life_images)
    return 0.5 ** (batch / max(min(half_life_images, rampup_ratio * images_seen), 1e-8))
