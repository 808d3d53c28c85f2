"""Figure and tables of the manifold toy experiments."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.figures import subplots

FRAME = 3.0  # half the side of the shown square of the plane
MEASURED = ("v_loss", "distance", "off_roll", "off_plane")
COLOURS = {"x": "tab:blue", "u": "tab:red", "eps": "tab:orange", "v": "tab:green"}
Row = Mapping[str, Any]


def write_report(
    out: Path, rows: Sequence[Row], references: Mapping[int, Row], settings: Mapping[str, Any]
) -> dict[str, Path]:
    """Write figure.png, table.md, arms.csv and results.json; return their paths.

    ``rows`` are the arms with their metrics; ``references`` has the best possible metrics for each dimension.
    """
    paths = {name: out / name for name in ("figure.png", "table.md", "arms.csv", "results.json")}
    summary = summarise(rows, references)
    draw(rows, references, summary, paths["figure.png"])
    paths["table.md"].write_text(table(summary) + "\n")
    columns = [name for name in rows[0] if name != "points"]
    with atomic_write(paths["arms.csv"]) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    arms = [{name: row[name] for name in columns} for row in rows]
    content = {"summary": summary, "arms": arms, "settings": settings}
    paths["results.json"].write_text(json.dumps(content, indent=1) + "\n")
    return paths


def summarise(rows: Sequence[Row], references: Mapping[int, Row]) -> list[dict[str, Any]]:
    """Return, for each dimension and prediction, mean and spread (standard deviation) over the seeds."""
    summary = []
    for dimension, reference in references.items():
        for prediction in dict.fromkeys(row["prediction"] for row in rows):
            arms = [row for row in rows if (row["dimension"], row["prediction"]) == (dimension, prediction)]
            line = {"dimension": dimension, "prediction": prediction, "seeds": len(arms)}
            for name in MEASURED:
                values = [arm[name] for arm in arms]
                line |= {name: mean(values), f"{name}_spread": stdev(values) if len(values) > 1 else None}
            line |= {"v_loss_exact": reference["v_loss"][prediction], "distance_floor": reference["distance"]}
            line |= {f"{name}_noise": value for name, value in reference["noise"].items()}
            summary.append(line)
    return summary


def table(summary: Sequence[Row]) -> str:
    """Return the summary as a Markdown table; a ± spread is the standard deviation over the seeds."""
    columns = ("D", "prediction", "v-loss", "distance", "off the roll", "off the plane")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for line in summary:
        if line["prediction"] == summary[0]["prediction"]:
            best = [_exact(summary, line["dimension"]), f"{line['distance_floor']:.3f}", "0", "0"]
            lines.append(_row(line["dimension"], "(exact velocity, real points)", *best))
        lines.append(_row(line["dimension"], line["prediction"], *(_with_spread(line, name) for name in MEASURED)))
    noise = (f"{mean(line[name] for line in summary):.3f}" for name in ("distance_noise", "off_roll_noise"))
    lines.append(_row("any", "(the noise itself)", "", *noise, "sqrt(D - 2)"))
    return "\n".join(lines)


def _exact(summary: Sequence[Row], dimension: int) -> str:
    """Format the v-loss of the exact velocity, once per prediction if clipping makes them differ."""
    losses = (f"{line['v_loss_exact']:.4f}" for line in summary if line["dimension"] == dimension)
    return " / ".join(dict.fromkeys(losses))


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _with_spread(line: Row, name: str) -> str:
    digits = 4 if name == "v_loss" else 3
    spread = line[f"{name}_spread"]
    return f"{line[name]:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def draw(rows: Sequence[Row], references: Mapping[int, Row], summary: Sequence[Row], path: Path) -> None:
    """Draw a column per dimension: the data, then the points of each prediction's first seed, on the plane."""
    predictions = list(dict.fromkeys(row["prediction"] for row in rows))
    size = (len(predictions) + 1, len(references))
    figure, axes = subplots(*size, figsize=(2.6 * size[1], 2.8 * size[0]), squeeze=False, layout="constrained")
    for column, (dimension, reference) in enumerate(references.items()):
        _scatter(axes[0][column], reference["points"], f"D = {dimension}", "tab:grey")
        for axis, prediction in zip(axes[1:, column], predictions, strict=True):
            matching = {"dimension": dimension, "prediction": prediction}
            first = next(row for row in rows if matching.items() <= row.items())
            line = next(line for line in summary if matching.items() <= line.items())
            title = f"v-loss {line['v_loss']:.3g}, distance {_short(line['distance'])}\n"
            title += f"off the roll {_short(line['off_roll'])}, off the plane {_short(line['off_plane'])}"
            _scatter(axis, first["points"], title, COLOURS.get(prediction, "black"))
    for axis, name in zip(
        axes[:, 0], ["data", *(f"{prediction}-prediction" for prediction in predictions)], strict=True
    ):
        axis.set_ylabel(name, fontsize=12)
    figure.savefig(path, dpi=120)


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _scatter(axis, points: Sequence[Sequence[float]], title: str, colour: str) -> None:
    axis.scatter(*zip(*points, strict=True), s=2, alpha=0.5, linewidths=0, color=colour)
    axis.set(xlim=(-FRAME, FRAME), ylim=(-FRAME, FRAME), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=9)
    outside = mean(not all(abs(value) < FRAME for value in point) for point in points)
    if outside >= 0.01:  # below 1 % is normal: 0.5 % of standard normal points are outside
        axis.text(0, 0.97 * -FRAME, f"{outside:.0%} are outside", ha="center", va="bottom", fontsize=9)
