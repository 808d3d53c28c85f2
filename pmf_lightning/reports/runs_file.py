"""runs.json: all runs of a study in one file that is small enough to commit.

``common`` contains the entries of configuration (config.yaml) and record (run.json) that are equal in all runs; a run
has the entries that differ, its summary (summary.json), and its log (metrics.jsonl) as one list per column. ``samples``
is the box (left, top, right, bottom) of its sample grid in samples.png, which is stored next to runs.json.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

RUNS = "runs.json"

SAMPLES = "samples.png"

FORMAT = 1

_SHARED = ("config", "record")

_MAPPINGS = (*_SHARED, "summary", "log")

_ORDERED = ("columns",)  # mappings whose order a page shows; they are not split

_WIDTH = 120


def pack(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of runs.json for ``runs``, mappings as ``unpack`` returns them."""
    common = {key: _shared([run[key] for run in runs if key in run]) for key in _SHARED}
    packed = []
    for run in runs:
        own = {key: _without(value, common[key]) if key in _SHARED else value for key, value in run.items()}
        packed.append({**own, "log": _columns(run["log"])} if "log" in run else own)
    return {"format": FORMAT, "common": {key: value for key, value in common.items() if value}, "runs": packed}


def unpack(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of a runs.json: mappings with name and any of config, record, summary, error, log and samples.

    Raises ValueError if the content is not of this format.
    """
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}; this version reads {FORMAT}")
    common, runs = content.get("common", {}), content.get("runs")
    if not isinstance(common, Mapping) or not isinstance(runs, list) or not all(map(_is_run, runs)):
        raise ValueError("common, or an entry of runs, has the wrong type")
    return [_unpacked(run, common) for run in runs]


def _is_run(run: Any) -> bool:
    """Return whether an entry of ``runs`` has the right types."""
    if not isinstance(run, Mapping) or not all(isinstance(run.get(key, {}), Mapping) for key in _MAPPINGS):
        return False
    columns, box = [*run.get("log", {}).values()], run.get("samples", [0] * 4)
    overrides = run.get("overrides", [])
    if not all(isinstance(value, list) for value in (*columns, box, overrides)):
        return False
    texts = [run.get("name"), run.get("error", ""), *overrides]
    return (
        all(isinstance(text, str) and "\0" not in text for text in texts)
        and len({len(column) for column in columns}) <= 1
        and [type(side) for side in box] == [int] * 4
    )


def _unpacked(run: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    shared = {key: _merged(common.get(key, {}), run[key]) for key in _SHARED if key in run}
    return {**run, **shared, **({"log": _rows(run["log"])} if "log" in run else {})}


def _shared(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that are equal in all nested mappings."""
    found = {}
    for key in values[0] if values else ():
        if not all(key in value for value in values):
            continue
        inner = [value[key] for value in values]
        if len({json.dumps(one, sort_keys=True) for one in inner}) == 1:
            found[key] = inner[0]
        elif key not in _ORDERED and all(isinstance(one, Mapping) for one in inner) and (shared := _shared(inner)):
            found[key] = shared
    return found


def _without(value: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a nested mapping that are not in ``common``."""
    own = {}
    for key, inner in value.items():
        if key not in common:
            own[key] = inner
        elif isinstance(inner, Mapping) and (rest := _without(inner, common[key])):
            own[key] = rest
    return own


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(common)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of a log; None stands for a missing value."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in zip(*columns.values(), strict=True)
    ]


def to_text(value: Any, indent: int = 0) -> str:
    """Format JSON with mappings and lists of mappings on several lines where one line is too long."""
    line = json.dumps(value, ensure_ascii=False)
    is_list = isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value)
    if len(line) + indent <= _WIDTH or not (isinstance(value, Mapping) or is_list):
        return line
    space = " " * (indent + 1)
    if is_list:
        inner = [f"{space}{to_text(one, indent + 1)}" for one in value]
    else:
        inner = [f"{space}{json.dumps(key)}: {to_text(one, indent + 1)}" for key, one in value.items()]
    start, end = "[]" if is_list else "{}"
    return start + "\n" + ",\n".join(inner) + f"\n{' ' * indent}{end}"
