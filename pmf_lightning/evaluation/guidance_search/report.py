"""Output of a guidance search: announcement, table, results.csv, best.json, and warnings at edges of the space."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pmf_lightning.evaluation.guidance_search.records import Record
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting, SearchSpace, show
from pmf_lightning.utils.counted import counted

MOST_PRINTED = 12
_COLUMNS = ("ema", "omega", "t_min", "t_max", "steps", "sampler", "n", "nfe")


def announce(model: str, axes: SearchSpace, strategy: str, evaluations: Sequence[int], what: str) -> None:
    """Print the search space; ``evaluations`` of the network are needed at the points, where ``what`` is measured."""
    values = {"ema": axes.ema, "omega": axes.omega, "steps": axes.steps, "sampler": axes.sampler}
    listed = [f"{name} {', '.join(map(show, tried))}" for name, tried in values.items()]
    intervals = ", ".join(f"[{show(low)}, {show(high)}]" for low, high in axes.interval)
    least, most = min(evaluations), max(evaluations)
    spread = counted(most, "network evaluation") if least == most else f"{least} to {most} network evaluations"
    count = f"{'at most ' if strategy == 'coordinate' else ''}{counted(len(axes), 'point')}"
    print(f"{model}: {'; '.join(listed)}; intervals {intervals}")
    print(f"  {count}, {spread} for an image: {what}")


def write_csv(records: Sequence[Record], path: Path) -> Path:
    """Write one row per record with options, all scores and seconds; return the path."""
    rows = [_row(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_table(records: Sequence[Record], last: Sequence[tuple[str, Record]], names: Mapping[int, str]) -> None:
    """Print the best points of the search, then those of ``last``, each with its title.

    ``names`` holds the name of the distance of n images, by n.
    """
    table = Table(title="guidance search")
    for name in ("", *_COLUMNS, "lower is better", "distance", "inception score"):
        table.add_column(name, justify="right" if name in ("omega", "n", "nfe", "distance") else "left")
    ranked = sorted(records, key=lambda record: math.inf if record.fid is None else record.fid)
    for place, record in enumerate(ranked[:MOST_PRINTED]):
        table.add_row(f"{place + 1}", *_cells(record, names))
    if len(ranked) > MOST_PRINTED:
        table.add_row(f"{len(ranked) - MOST_PRINTED} more")
    if last:
        table.add_section()
    for title, record in last:
        table.add_row(title, *_cells(record, names))
    Console(width=max(140, Console().width)).print(table)


def write_best(path: Path, best: Record, last: Mapping[str, Record], command_lines: Mapping[str, str]) -> Path:
    """Write the best point with its scores, the ``last`` measurements and the command lines; return the path."""
    stored = {"best": best.plain(), **{name: record.plain() for name, record in last.items()}, **command_lines}
    path.write_text(json.dumps(stored, indent=2) + "\n")
    return path


def edges(best: SamplingSetting, axes: SearchSpace) -> list[str]:
    """Return a hint for each best value at the edge of the search space, beyond which a better one may exist."""
    warnings = []
    for key, value, tried, floor in (("omega", best.omega, axes.omega, 1), ("steps", best.steps, axes.steps, None)):
        if len(tried) > 1 and value == max(tried):
            warnings.append(f"the best {key}, {show(value)}, is the largest that was tried: try larger ones")
        elif len(tried) > 1 and value == min(tried) != floor and key == "omega":
            warnings.append(f"the best {key}, {show(value)}, is the smallest that was tried: try smaller ones")
    return warnings


def _row(record: Record) -> dict[str, Any]:
    point, scores = record.point, dict(record.scores)
    scores["flags"] = " ".join(scores.get("flags", ()))
    options = {"ema": point.ema, **point.options, "n": record.n, "nfe": record.nfe}
    rest = {"seconds": round(record.seconds, 2), "problem": record.problem or ""}
    return options | {name: scores[name] for name in scores if name != "n"} | rest


def _cells(record: Record, names: Mapping[int, str]) -> list[str]:
    options = {"ema": record.point.ema, **record.point.options, "n": record.n, "nfe": record.nfe}
    score = record.scores.get("inception_score")
    distance = f"{record.fid:.4g}" if record.fid is not None else record.problem or ""
    numbers = [names[record.n], distance, "" if score is None else f"{score:.4g}"]
    return [*(show(options[name]) for name in _COLUMNS), *numbers]
