"""Settings that distinguish runs outside a study: the overrides of their command lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pmf_lightning.config.option_effects import UNSTATED, WITHOUT_EFFECT
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


def differences(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings of two runs of one arm that differ, by their keys; what ``fingerprint`` ignores is ignored.

    Options without an effect on results do not count, nor the place of the data, keys that one of the runs lacks, and
    moved classes: versions of this program write other ones.
    """
    return dict(_differing(_counted(run), _counted(other), ""))


def _counted(run: Run) -> dict[str, Any]:
    given = {_key_and_value(override)[0] for override in run.overrides}
    counted = {key for key in run.config if _is_setting(key) and (key != "init_from" or key in given)}
    return {key: value for key, value in run.config.items() if key in counted}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], above: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in (key for key in one if key in other):
        pair, path = (one[key], other[key]), f"{above}{key}"
        if any(fnmatchcase(path, pattern) for pattern in (*UNSTATED, *WITHOUT_EFFECT, "data.root")):
            continue
        if all(isinstance(value, Mapping) for value in pair):
            yield from _differing(*pair, f"{path}.")
        elif not _equal(*(_class_name(value) if key == "_target_" else value for value in pair)):
            yield path, pair


def _equal(one: Any, other: Any) -> bool:
    """Return whether two values are the same setting; null and an empty mapping are."""
    return one == other or (one in (None, {}) and other in (None, {}))


def _class_name(target: Any) -> str:
    return str(target).rpartition(".")[2].lower()  # torch.optim.Adam and optimizers.adam are one


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
