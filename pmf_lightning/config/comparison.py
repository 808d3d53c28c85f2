"""Compare two configurations option by option, and know the options that do not change the results of a run."""

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

# Patterns of options, in which "*" stands for any text: those that are not compared, locations, loggers and the study.
UNSTATED = ("ckpt", "run_dir", "cache_dir", "study", "study.*", "logger", "logger.*")
# A finished run with other values of these options is not repeated: they do not change its results.
WITHOUT_EFFECT = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
    *("trainer.max_time", "trainer.profiler", "trainer.detect_anomaly"),
    *("micro_batch", "num_workers", "threads", "compile", "activation_checkpointing", "matmul_precision"),
    *("sync_tolerance", "ema.device", "moments", "moments.device"),
    *("log_every_steps", "diagnostics.*", "skip_nonfinite.*"),
    *("sample_grid.*", "checkpoint.*", "decoder.weights", "features.*.weights", "queues.folder", "search", "search.*"),
    *("battery.members.*.weights", "posttrain.micro_batch"),
)
PATHS = ("root", "path", "weights", "folder", "init_from", "reference")  # options that are compared as resolved paths
ABSENT = object()
Difference = tuple[str, Any, Any]  # an option with its old and its new value


def differences(old: Any, new: Any, key: str = "") -> Iterator[Difference]:
    """Yield the options of two resolved configurations (plain data) that differ, with both values.

    A value that one side lacks is ``ABSENT``. Two mappings with different ``_target_`` are one difference.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if not _same(old, new, key):
            yield key, old, new
    elif key and old.get("_target_") != new.get("_target_"):
        yield key, old, new
    else:
        for name in dict.fromkeys([*new, *old]):
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(old.get(name, ABSENT), new.get(name, ABSENT), inner)


def _same(old: Any, new: Any, key: str) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(_same(a, b, "") for a, b in zip(old, new, strict=True))
    if key.rpartition(".")[2] in PATHS and isinstance(old, str | PurePath) and isinstance(new, str | PurePath):
        return os.path.realpath(old) == os.path.realpath(new)
    if _is_nothing(old) and _is_nothing(new):
        return True
    return old is new or (isinstance(old, bool) == isinstance(new, bool) and old == new)


def _is_nothing(value: Any) -> bool:
    """Return whether a value is null or an empty mapping, which mean the same."""
    return value is None or (isinstance(value, Mapping) and not value)


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether an option fits one of ``patterns``."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)
