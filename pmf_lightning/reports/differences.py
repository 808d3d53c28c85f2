"""Find a few keys that distinguish configurations, among the many that differ."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NOT_SETTINGS = ("seed", "run_dir", "ckpt", "cache_dir", "study", "logger", "workers", "hydra")
_PATH = re.compile(r"(^|\.)(path|root|folder|weights|reference)$")
_LENGTH = re.compile(r"(^|\.)(steps|images|every_images|batch)$")  # often derived from other keys
ABSENT = "-"


def distinguishing_keys(configs: Sequence[Mapping[str, Any]], hints: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return for each configuration the values of the keys that distinguish it; seeds and paths are ignored.

    Of keys that differ in the same way only one is used, and keys that add no distinction are dropped. A sweep of
    ``model`` gives ``name``; a sweep of patch and prediction gives these two and no derived keys. ``hints`` are
    preferred keys.
    """
    flat = [dict(_leaves(config)) for config in configs]
    keys = list(dict.fromkeys(key for leaves in flat for key in leaves))
    ways: dict[tuple[int, ...], str] = {}
    for key in sorted(keys, key=lambda key: (key not in hints, _plainness(key))):
        way = _partition([_frozen(leaves.get(key, ABSENT)) for leaves in flat])
        if max(way) > 0:
            ways.setdefault(way, key)
    fewest = {key: way for way, key in ways.items() if key in _fewest(ways, hints)}
    chosen = [_in_all(key, fewest[key], configs) for key in keys if key in fewest]
    return [{key: _shown(config, key) for key in chosen} for config in configs]


def _fewest(ways: Mapping[tuple[int, ...], str], hints: Sequence[str]) -> list[str]:
    """Choose keys, hints and coarse partitions first, until they distinguish as much as all keys together."""
    whole = _joint(list(ways))
    if ways.get(whole) == "name":
        return ["name"]
    chosen: list[tuple[int, ...]] = []
    for way in sorted(ways, key=lambda way: (ways[way] not in hints, max(way), _plainness(ways[way]))):
        if not chosen or _joint([*chosen, way]) != _joint(chosen):
            chosen.append(way)
    for way in list(chosen):  # a later, finer partition may imply an earlier one
        others = [other for other in chosen if other is not way]
        if others and _joint(others) == whole:
            chosen = others
    return [ways[way] for way in chosen]


def _joint(ways: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the common refinement of the partitions."""
    return _partition(list(zip(*ways, strict=True)))


def _partition(values: Sequence[Any]) -> tuple[int, ...]:
    """Number the values by their first appearance: equal values, equal numbers."""
    order: dict[Any, int] = {}
    return tuple(order.setdefault(value, len(order)) for value in values)


def _in_all(key: str, way: tuple[int, ...], configs: Sequence[Mapping[str, Any]]) -> str:
    """Return ``key``, or its parent if only some configurations have ``key`` and the parent distinguishes as much."""
    above = key
    while ABSENT in (shown := [_shown(config, above) for config in configs]) and "." in above:
        above = above.rpartition(".")[0]
    return above if _partition(list(map(_frozen, shown))) == way else key


def _shown(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key; for a mapping its keys, "none" if it is empty."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return (", ".join(map(str, value)) or "none") if isinstance(value, Mapping) else value


def _frozen(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _plainness(key: str) -> tuple[bool, bool, bool, int, str]:
    """Sort key that puts the most informative keys first: the model's name, then keys with few dots."""
    return key != "name", key.endswith("_target_"), _LENGTH.search(key) is not None, key.count("."), key


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all settings of a configuration."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            if key or name not in _NOT_SETTINGS:
                yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif key and not _PATH.search(key):
        yield key, value
