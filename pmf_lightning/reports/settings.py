"""Settings that distinguish runs outside a study: the overrides of their command lines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pmf_lightning.config import comparison
from pmf_lightning.reports.runs import Run

_NOT_SETTINGS = ("seed", "run_dir", "ckpt", "cache_dir", "study", "logger", "num_workers", "hydra")
_NOT_SETTINGS += ("sample_grid", "checkpoint", "diagnostics", "log_every_steps")
ABSENT = "-"


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return for each run the overridden keys and their values, without those that are equal in all runs.

    The value of a key is that in the configuration, so that a default equals the same value typed. For the choice of a
    group it is the override; a ``model`` that was not chosen has the name in the configuration. Seeds, paths and
    options that do not change a result are ignored.
    """
    given = [dict(map(_key_and_value, run.overrides)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in given for key in one) if _is_setting(key)]
    columns = {key: [_value(run.config, key, one) for run, one in zip(runs, given, strict=True)] for key in keys}
    differing = {key: values for key, values in columns.items() if len(set(map(_frozen, values))) > 1}
    return [{key: values[number] for key, values in differing.items()} for number in range(len(runs))]


def fingerprint(run: Run) -> str:
    """Return a text that is equal for two runs whose configurations differ in seeds, paths and the like alone.

    ``init_from`` of an experiment may name the weights of the run's own seed; it counts if the command line sets it.
    """
    return _frozen(_counted(run))


def differences(run: Run, other: Run) -> dict[str, list[Any]]:
    """Return the settings of two runs of one arm that differ, by their keys; what ``fingerprint`` ignores is ignored.

    Options without an effect on results do not count, nor the place of the data, keys that one of the runs lacks, and
    moved classes: versions of this program write other ones.
    """
    ignored = (*comparison.UNSTATED, *comparison.WITHOUT_EFFECT, "data.root")
    found = comparison.differences(_by_class(_counted(run)), _by_class(_counted(other)))
    return {key: pair for key, *pair in found if comparison.ABSENT not in pair and not comparison.matches(key, ignored)}


def _counted(run: Run) -> dict[str, Any]:
    given = {_key_and_value(override)[0] for override in run.overrides}
    counted = {key for key in run.config if _is_setting(key) and (key != "init_from" or key in given)}
    return {key: value for key, value in run.config.items() if key in counted}


def _by_class(value: Any) -> Any:
    """Return a configuration with the names of classes alone: torch.optim.Adam and optimizers.adam are one."""
    if not isinstance(value, Mapping):
        return value
    named = {key: _by_class(inner) for key, inner in value.items()}
    return named | ({"_target_": str(named["_target_"]).rpartition(".")[2].lower()} if "_target_" in named else {})


def _is_setting(key: str) -> bool:
    return key.partition(".")[0] not in _NOT_SETTINGS


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, ABSENT if override.startswith("~") else value


def _value(config: Mapping[str, Any], key: str, given: Mapping[str, str]) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or isinstance(value, Mapping):
        return given.get(key, config.get("name", ABSENT) if key == "model" else ABSENT)
    return value


def _frozen(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)
