"""Tables of the drifting toy, and the list of what it writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pmf_lightning.toys.drift2d_pictures import save_figure, save_film

MEASURED = ("first", "second", "elsewhere", "distance")
LAST = 0.1  # share of the log that stands for the end
Row = Mapping[str, Any]


def write_report(out: Path, rows: Sequence[Row], truth: Row, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write figure.png, drift2d.gif, table.md and results.json; return their paths.

    ``rows`` are the arms with what was measured of them; ``truth`` is what points of the data give.
    """
    paths = {name: out / name for name in ("figure.png", "drift2d.gif", "table.md", "results.json")}
    temperatures = settings["loss"]["temperatures"]
    summary = summarise(rows)
    paths["table.md"].write_text(table(summary, truth, temperatures) + "\n")
    arms = [{name: value for name, value in row.items() if name not in ("log", "film")} for row in rows]
    data = {name: truth[name] for name in (*MEASURED, "loss", "force_norm")}
    content = {"summary": summary, "data": data, "arms": arms, "settings": settings}
    paths["results.json"].write_text(json.dumps(content, indent=1) + "\n")
    first = [next(row for row in rows if row["start"] == line["start"]) for line in summary]
    save_figure(first, truth, temperatures, paths["figure.png"])
    save_film(first, truth, paths["drift2d.gif"])
    return paths


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each start, mean and spread (standard deviation) over the seeds, and numbers of the log.

    ``loss`` and ``force_norm`` (one per temperature) are pairs: at the first step, and on average over the last tenth.
    """
    summary = []
    for start in dict.fromkeys(row["start"] for row in rows):
        arms = [row for row in rows if row["start"] == start]
        line = {"start": start, "seeds": len(arms)}
        for name in MEASURED:
            values = [arm[name] for arm in arms]
            line |= {name: mean(values), f"{name}_spread": stdev(values) if len(values) > 1 else None}
        line["least_share"] = min(min(arm["first"], arm["second"]) for arm in arms)
        line["loss"] = [mean(values) for values in zip(*(_ends(arm, _loss) for arm in arms), strict=True)]
        line["force_norm"] = [
            [mean(values) for values in zip(*(_ends(arm, _norm(place)) for arm in arms), strict=True)]
            for place in range(len(arms[0]["log"][0]["force_norm"]))
        ]
        summary.append(line)
    return summary


def _ends(arm: Row, number) -> tuple[float, float]:
    log = arm["log"]
    return number(log[0]), mean(map(number, log[-max(1, round(LAST * len(log))) :]))


def _loss(entry: Row) -> float:
    return entry["loss"]


def _norm(place: int):
    return lambda entry: entry["force_norm"][place]


def table(summary: Sequence[Row], truth: Row, temperatures: Sequence[float]) -> str:
    """Return the summary as a Markdown table; a ± spread is the standard deviation over the seeds."""
    columns = ["start", "first mode", "second mode", "elsewhere", "distance", "loss, first -> last"]
    columns += [f"force norm at R = {temperature:g}" for temperature in temperatures]
    lines = [_cells(columns), "|" + "---|" * len(columns)]
    for line in summary:
        cells = [line["start"], *(_with_spread(line, name) for name in MEASURED)]
        pairs = [line["loss"], *line["force_norm"]]
        lines.append(_cells(cells + [f"{first:.3g} -> {last:.3g}" for first, last in pairs]))
    of_data = [truth["loss"], *truth["force_norm"]]
    lines.append(_cells(["(the data)", *(f"{truth[name]:.3f}" for name in MEASURED), *(f"{x:.3g}" for x in of_data)]))
    return "\n".join(lines)


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_spread(line: Row, name: str) -> str:
    spread = line[f"{name}_spread"]
    return f"{line[name]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
