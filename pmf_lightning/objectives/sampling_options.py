"""Checks of the options with which a network makes images: guidance, number of steps and sampler."""

from collections.abc import Sequence

from pmf_lightning.utils.precision import Number


def check_guidance(omega: Number, t_min: Number, t_max: Number, prefix: str = "") -> None:
    """Raise ValueError unless omega is 1 or more and 0 <= t_min <= t_max <= 1; ``prefix`` precedes their names."""
    if not omega >= 1:  # also rejects NaN
        raise ValueError(f"{prefix}omega={omega}: the guidance scale is 1 (none) or more")
    if not 0 <= t_min <= t_max <= 1:
        raise ValueError(f"{prefix}t_min={t_min} {prefix}t_max={t_max}: the interval needs 0 <= t_min <= t_max <= 1")


def chosen_sampler(samplers: Sequence[str], sampler: str | None, steps: int, prefix: str = "") -> str:
    """Return ``sampler``, or for None the first of ``samplers``, those of an objective.

    Raises ValueError for a sampler that is none of them, and for a number of steps that it cannot take; ``prefix``
    precedes the names.
    """
    if sampler not in (None, *samplers):
        raise ValueError(f"{prefix}sampler={sampler}: this model samples by {', '.join(samplers)}")
    sampler = sampler or samplers[0]
    if steps < 1:
        raise ValueError(f"{prefix}steps={steps}: at least one step is needed")
    if sampler == "one_step" and steps != 1:
        raise ValueError(f"{prefix}steps={steps}: this model makes an image in one step; set {prefix}steps=1")
    return sampler
