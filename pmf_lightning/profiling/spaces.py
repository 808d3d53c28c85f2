"""Prediction space, conversion and loss space of an objective, as text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pmf_lightning.objectives.drifting import Drifting
from pmf_lightning.objectives.jit import JiT
from pmf_lightning.objectives.pixel_meanflow import PixelMeanFlow
from pmf_lightning.utils.errors import UserError

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
class ObjectiveSpaces:
    """The spaces of an objective, as formulas.

    Args:
        conversion: from the network's output to the loss space, as in "x -> u = (z - x) / clip(t, 0.05, 1) -> V".
        target: formula of the regression target, from the data.
        compared: the target in words.
        velocity: the source of v, and guidance.
    """

    conversion: str
    target: str
    compared: str
    velocity: str


class NoFlowError(UserError):
    """The objective does not map noise to images, so it has no spaces."""


def describe(objective: Any) -> ObjectiveSpaces:
    """Return the spaces of an objective; raises NoFlowError for a type that is not in ``_KINDS``."""
    if type(objective) not in _KINDS:
        known = ", ".join(kind.__name__ for kind in _KINDS)
        raise NoFlowError(f"objective {type(objective).__name__}: info describes {known}; choose a model of these")
    return _KINDS[type(objective)](objective)


def _meanflow(objective: PixelMeanFlow) -> ObjectiveSpaces:
    clipped = f"(z - x) / clip(t, {objective.t_clip:g}, 1)"
    if objective.prediction == "u":
        conversion = "u -> V"
    elif objective.preconditioner is None:
        conversion = f"x -> u = {clipped} -> V"
    else:
        name = type(objective.preconditioner).__name__
        conversion = f"F -> x = c_skip(t) z + c_out(t) F ({name}) -> u = {clipped} -> V"
    target = "e - x" if objective.target == "plain" else clipped
    return ObjectiveSpaces(
        conversion=conversion,
        target=target,
        compared=f"the guided velocity of v_t = {target}",
        velocity="v = u(z, t, t)" if objective.velocity == "boundary" else "a head of its own, with its own loss",
    )


def _jit(objective: JiT) -> ObjectiveSpaces:
    given, wanted = objective.prediction, objective.loss
    converted = "" if given == wanted else f" -> {_CONVERSIONS[given, wanted].format(objective.t_clip)}"
    truth = {"x": "x", "eps": "e", "v": "e - x"}[given]
    return ObjectiveSpaces(
        conversion=f"{given}{converted}",
        target=f"{given} = {truth}{converted}",
        compared=f"{wanted} of the data, {'by the same conversion' if converted else f'{wanted} = {truth}'}",
        velocity="of the answer; guidance: label drop alone, v_u + omega (v_c - v_u) when sampling",
    )


def _drifting(objective: Drifting) -> ObjectiveSpaces:
    return ObjectiveSpaces(
        conversion="x",
        target="x + V",
        compared="x + V, where the drifting field takes it, in every feature",
        velocity="none, x in one evaluation; guidance: alpha, a condition, decides how far other real images repel",
    )


_KINDS: dict[type, Callable[[Any], ObjectiveSpaces]] = {PixelMeanFlow: _meanflow, JiT: _jit, Drifting: _drifting}
