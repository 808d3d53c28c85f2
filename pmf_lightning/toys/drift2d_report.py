"""Table, figure and animation of the Drifting toy experiment."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.figures import subplots

Row = Mapping[str, Any]

SNAPSHOTS = (0, 0.15, 0.3, 0.5, 1)  # positions in the film, as fractions of its frames

GENERATED, DATA, MODES = "tab:orange", "tab:blue", ("tab:purple", "tab:green")

FRAME_MS, LAST_FRAME_MS, COLOURS = 80, 2500, 48


def save_figure(rows: Sequence[Row], truth: Row, temperatures: Sequence[float], path: Path) -> None:
    """Draw a row per start: points at five steps over the data, then loss, force norms and shares."""
    count = len(SNAPSHOTS) + 3
    widths = [1] * len(SNAPSHOTS) + [1.3] * 3
    figure, axes = subplots(
        len(rows), count, figsize=(2.3 * sum(widths), 2.1 * len(rows) + 0.7), squeeze=False, layout="constrained",
        width_ratios=widths,
    )  # fmt: skip
    limits = _limits(rows, truth)
    for row, line in zip(rows, axes, strict=True):
        for axis, place in zip(line, SNAPSHOTS, strict=False):
            frame = row["film"][round(place * (len(row["film"]) - 1))]
            _scatter(axis, frame, truth, limits, f"step {frame['step']}")
        line[0].set_ylabel(f"start: {row['start']}", fontsize=11)
        _curves(line[-3:], row, truth, temperatures)
    for axis, title in zip(axes[0][-3:], ("loss", "force norm before normalisation", "share of samples"), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1][-3:]:
        axis.set_xlabel("step")
    figure.suptitle(
        "Drifting: generated points (orange) over the data (blue). The loss is nearly constant by construction; "
        "dotted: data in place of samples",
        fontsize=11,
    )
    figure.savefig(path, dpi=90)


def _curves(axes, row: Row, truth: Row, temperatures: Sequence[float]) -> None:
    steps = [entry["step"] for entry in row["log"]]
    loss, norms, shares = axes
    loss.plot(steps, [entry["loss"] for entry in row["log"]], color="black", linewidth=0.8)
    loss.axhline(truth["loss"], color="black", linestyle=":")
    loss.set_ylim(0, len(temperatures) ** 2 * 1.05)
    for place, temperature in enumerate(temperatures):
        (line,) = norms.plot(
            steps, [entry["force_norm"][place] for entry in row["log"]], linewidth=0.8, label=f"R = {temperature:g}"
        )
        norms.axhline(truth["force_norm"][place], color=line.get_color(), linestyle=":")
    norms.set_yscale("log")
    norms.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norms.yaxis.set_major_formatter("{x:g}")
    norms.yaxis.set_minor_locator(NullLocator())
    norms.legend(fontsize=7)
    for mode, colour in enumerate(MODES):
        values = [entry["shares"][mode] for entry in row["log"]]
        shares.plot(steps, values, color=colour, linewidth=0.8, label=("first mode", "second mode")[mode])
    shares.set_ylim(-0.03, 1.03)
    shares.legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)


def save_film(rows: Sequence[Row], truth: Row, path: Path) -> None:
    """Write an animated GIF with a panel per start; the last frame is shown longer."""
    figure, axes = subplots(1, len(rows), figsize=(3.2 * len(rows), 2.8), squeeze=False, layout="constrained")
    limits, frames = _limits(rows, truth), []
    for place in range(len(rows[0]["film"])):
        for row, axis in zip(rows, axes[0], strict=True):
            axis.clear()
            frame = row["film"][place]
            _scatter(axis, frame, truth, limits, f"{row['start']}, step {frame['step']}")
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()))
    palette = frames[-1].quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    with atomic_write(path) as partial:
        first.save(partial, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _limits(rows: Sequence[Row], truth: Row) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return common axis limits of all panels, which contain the data, every start and every end."""
    shown = [row["film"][place]["points"] for row in rows for place in (0, -1)] + [truth["points"]]
    points = np.concatenate([np.array(points) for points in shown])
    middle, sides = (points.max(0) + points.min(0)) / 2, 1.1 * np.ptp(points, axis=0) / 2 + 0.1
    return tuple((value - side, value + side) for value, side in zip(middle, sides, strict=True))


def _scatter(axis, frame: Row, truth: Row, limits, title: str) -> None:
    axis.scatter(*zip(*truth["points"], strict=True), s=3, alpha=0.35, linewidths=0, color=DATA)
    axis.scatter(*zip(*frame["points"], strict=True), s=3, linewidths=0, color=GENERATED)
    axis.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=9)


MEASURED = ("first", "second", "elsewhere", "distance")

LAST = 0.1  # fraction of the log that is averaged as the end


def write_report(out: Path, rows: Sequence[Row], truth: Row, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write figure.png, drift2d.gif, table.md and results.json; return their paths.

    ``rows`` are the arms with their metrics; ``truth`` has the metrics of the data.
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

    ``loss`` and ``force_norm`` (one per temperature) are pairs: the first step, and the mean of the last tenth.
    """
    summary = []
    for start in dict.fromkeys(row["start"] for row in rows):
        arms = [row for row in rows if row["start"] == start]
        line = {"start": start, "seeds": len(arms)}
        for name in MEASURED:
            values = [arm[name] for arm in arms]
            line |= {name: mean(values), f"{name}_spread": stdev(values) if len(values) > 1 else None}
        line["least_share"] = min(min(arm["first"], arm["second"]) for arm in arms)
        line["loss"] = [
            mean(values) for values in zip(*(_ends(arm, lambda entry: entry["loss"]) for arm in arms), strict=True)
        ]
        line["force_norm"] = [
            [
                mean(values)
                for values in zip(
                    *(_ends(arm, lambda entry, place=place: entry["force_norm"][place]) for arm in arms), strict=True
                )
            ]
            for place in range(len(arms[0]["log"][0]["force_norm"]))
        ]
        summary.append(line)
    return summary


def _ends(arm: Row, number) -> tuple[float, float]:
    log = arm["log"]
    return number(log[0]), mean(map(number, log[-max(1, round(LAST * len(log))) :]))


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
