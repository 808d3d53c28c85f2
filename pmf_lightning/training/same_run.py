"""Compare the stored configuration of a run with the requested one: is it the same run, and which options change?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any

from hydra.utils import get_object

from pmf_lightning.config.comparison import ABSENT, UNSTATED, WITHOUT_EFFECT, differences, matches
from pmf_lightning.objectives.base import ObjectiveBase
from pmf_lightning.pipeline.migrate import ADDED_OPTIONS

# Options that a resumed run may change: length, learning rate, hardware, logging, image grids and evaluation, and the
# fields that the class of the objective lists (``ObjectiveBase.changeable_fields``). Any other change makes it another
# run and is refused, including changes of new options.
CHANGEABLE = (
    *("steps", "images", "schedule.*"),
    *("optimizer.lr", "posttrain_lr", "posttrain_lr.*", "optimizer.weight_decay"),
    *("optimizer.distribute", "optimizer.ns_dtype", "ema.device", "moments", "moments.device"),
    *(
        "trainer.*",
        "micro_batch",
        "num_workers",
        "threads",
        "compile",
        "activation_checkpointing",
        "matmul_precision",
        "sync_tolerance",
    ),
    "backbone.attention",  # the same numbers but for rounding
    *("log_every_steps", "diagnostics.*", "skip_nonfinite.*", "sample_grid.*", "checkpoint.*"),
    *("metrics", "metrics.*", "protocol", "protocol.*", "extractor", "extractor.*", "sampling.*", "search", "search.*"),
    *("decoder.weights", "features.*.weights", "queues.folder"),  # file locations
    *("battery.members.*.weights", "posttrain.micro_batch"),
    *("callbacks", "callbacks.*"),
)
OF_METRICS = ("battery.reference",)  # changeable too, unless post-training matches images with it
# Options newer than some checkpoints, with the values that those checkpoints were trained with.
WHENABSENT = {**ADDED_OPTIONS, "data.draw": "every_time", "callbacks": {}, "train_images": None}
WHENABSENT |= {"init_from": None, "init_ema": None, "init_skip": []}
WHENABSENT |= {"battery": None, "posttrain": None, "posttrain_lr": None, "schedule.decay_shape": "linear"}
WHENABSENT |= {"battery.floors": None, "threads": None, "ema.device": None}
WHENABSENT |= {
    f"trainer.{name}": None
    for name in ("gradient_clip_algorithm", "max_time", "deterministic", "benchmark", "detect_anomaly", "profiler")
}
# Mappings whose keys are user data. In any other mapping, a key that one side lacks is an option of another version.
FREE = ("conditions", "backbone.conditions", "backbone.heads", "features", "callbacks")
FREE += ("posttrain.weights", "battery.floors")


@dataclass(frozen=True)
class Change:
    """One option with another value: ``old`` in the stored run, ``new`` in the requested one."""

    key: str
    old: Any
    new: Any

    @property
    def before(self) -> str:
        """The option with its stored value, in command-line syntax."""
        return f"{self._option}={shown(self.old)}"

    @property
    def after(self) -> str:
        """The option with its requested value, in command-line syntax."""
        return f"{self._option}={shown(self.new)}"

    @property
    def text(self) -> str:
        """The option with both values."""
        return f"{self._option} {shown(self.old)} -> {shown(self.new)}"

    @property
    def _option(self) -> str:
        return "model" if self.key == "name" else self.key


@dataclass(frozen=True)
class Comparison:
    """The differences between a stored configuration and the requested one.

    Args:
        refused: changes that make it another run.
        allowed: changes that a resumed run may make.
        unknown: options that only one of the two configurations has, because another version wrote it.
        without_effect: patterns of the options that do not change the results of a run.
    """

    refused: list[Change] = field(default_factory=list)
    allowed: list[Change] = field(default_factory=list)
    unknown: list[Change] = field(default_factory=list)
    without_effect: tuple[str, ...] = WITHOUT_EFFECT

    @property
    def with_effect(self) -> list[Change]:
        """The refused and allowed changes that change the results of a run."""
        return [change for change in (*self.refused, *self.allowed) if not matches(change.key, self.without_effect)]


def compare(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> Comparison:
    """Compare two resolved configurations (plain data) option by option."""
    kind = _objective(requested)
    changeable = CHANGEABLE if requested.get("posttrain") else (*CHANGEABLE, *OF_METRICS)
    changeable, without_effect, free = (
        (*keys, *(f"objective.{name}" for name in names))
        for keys, names in (
            (changeable, kind.changeable_fields),
            (WITHOUT_EFFECT, kind.fields_without_effect),
            (FREE, kind.mapping_fields),
        )
    )
    found, seen = Comparison(without_effect=without_effect), set()
    for change in starmap(Change, sorted(differences(stored, requested), key=lambda change: change[0] != "name")):
        may_change = matches(change.key, changeable)
        mark = (change.key.rpartition(".")[2], repr(change.old), repr(change.new), may_change)
        if matches(change.key, UNSTATED) or mark in seen:  # backbone.resolution follows data.resolution
            continue
        if change.old is ABSENT and change.key in WHENABSENT:
            change = Change(change.key, WHENABSENT[change.key], change.new)
            if change.old == change.new:
                continue
        if not matches(f"{change.key}.", tuple(f"{name}.*" for name in free)) and ABSENT in (change.old, change.new):
            found.unknown.append(change)
        else:
            seen.add(mark)
            (found.allowed if may_change else found.refused).append(change)
    return found


def _objective(config: Mapping[str, Any]) -> type[ObjectiveBase]:
    """Return the class of a configuration's objective; the base class if there is none, or if it has another base."""
    target = config.get("objective", {}).get("_target_")
    kind = ObjectiveBase if target is None else get_object(target)
    return kind if issubclass(kind, ObjectiveBase) else ObjectiveBase


def shown(value: Any) -> str:
    """Format a value in command-line syntax; a mapping is shown by its name or its class."""
    if value is ABSENT:
        return "(not set)"
    if isinstance(value, Mapping):
        name = value.get("name", str(value.get("_target_", "")).rpartition(".")[2])
        return str(name) if name else "{" + ",".join(f"{key}:{shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
