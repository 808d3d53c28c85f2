"""Table and figure of RDM's spiral, with the published scores beside ours."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pmf_lightning.utils.figures import subplots

Row = Mapping[str, Any]

SCORES = ("recall", "median_distance")
TITLES = {
    "frechet": "Frechet",
    "sliced": "sliced Wasserstein",
    "drift": "drifting",
    "mmd_fourier": "MMD, Fourier",
    "mmd_exact": "MMD, exact",
    "mmd_nystrom": "MMD, Nystrom",
}
GENERATED, CURVE = "tab:blue", "tab:orange"
MARGIN = 1.15  # half the side of a panel, in units of the largest coordinate of the curve


def write_report(
    out: Path, rows: Sequence[Row], truth: Row, compared: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Path]:
    """Write figure.png, table.md and results.json; return their paths.

    ``rows`` are the arms with their scores; ``truth`` has the scores of the data, and the curve; ``compared`` has the
    published scores, and how near to them agreement is. The figure shows the seed of the first row.
    """
    paths = {name: out / name for name in ("figure.png", "table.md", "results.json")}
    summary, data = summarise(rows, compared), {score: truth[score] for score in SCORES}
    paths["table.md"].write_text(table(summary, data, compared) + "\n")
    arms = [{name: value for name, value in row.items() if name != "points"} for row in rows]
    content = {"summary": summary, "data": data, "arms": arms, "settings": settings, **compared}
    paths["results.json"].write_text(json.dumps(content, indent=1) + "\n")
    save_figure([row for row in rows if row["seed"] == rows[0]["seed"]], truth["curve"], paths["figure.png"])
    return paths


def summarise(rows: Sequence[Row], compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each distance and batch, mean and spread (standard deviation) over the seeds, and what is published.

    ``agrees`` has the scores whose mean is as near to the published one as ``agreement`` wants; None: not published.
    """
    summary = []
    for distance, batch in dict.fromkeys((row["distance"], row["batch"]) for row in rows):
        arms = [row for row in rows if (row["distance"], row["batch"]) == (distance, batch)]
        there = published_scores(compared["published"], distance, batch)
        line = {"distance": distance, "batch": batch, "seeds": len(arms), "published": there}
        for score in SCORES:
            values = [arm[score] for arm in arms]
            line |= {score: mean(values), f"{score}_spread": stdev(values) if len(values) > 1 else None}
        line["agrees"] = there and [score for score in SCORES if _near(line, score, compared["agreement"])]
        summary.append(line)
    return summary


def published_scores(published: Mapping[str, Any], distance: str, batch: int) -> dict[str, float] | None:
    """Return the published scores of an arm; None if there are none."""
    if batch not in published["batches"] or any(distance not in published[score] for score in SCORES):
        return None
    place = published["batches"].index(batch)
    return {score: published[score][distance][place] for score in SCORES}


def _near(line: Row, score: str, agreement: Mapping[str, float]) -> bool:
    there = line["published"][score]
    most = agreement[score] * (1 if score == "recall" else there)
    return abs(line[score] - there) <= most


def table(summary: Sequence[Row], data: Row, compared: Mapping[str, Any]) -> str:
    """Return the summary as a Markdown table and a line below it; a ± spread is the standard deviation over the seeds.

    The published scores have two or three digits.
    """
    columns = ("distance", "batch", "recall", "published", "median distance", "published", "agree")
    lines = [_cells(columns), "|" + "---|" * len(columns)]
    for line in summary:
        cells = [TITLES[line["distance"]], str(line["batch"])]
        for score, digits in zip(SCORES, (2, 3), strict=True):
            cells.append(_with_spread(line, score, digits))
            cells.append(f"{line['published'][score]:.{digits}f}" if line["published"] else "")
        lines.append(_cells([*cells, _agreement(line)]))
    best = compared["published"]["data"]["median_distance"]
    floor = [f"{data['recall']:.2f}", "", f"{data['median_distance']:.3f}", f"{best:.3f}", ""]
    lines.append(_cells(["(the data)", "", *floor]))
    return "\n".join([*lines, *_conclusion(summary, compared["agreement"])])


def _conclusion(summary: Sequence[Row], agreement: Mapping[str, float]) -> list[str]:
    known = [line for line in summary if line["published"]]
    both = sum(len(line["agrees"]) == len(SCORES) for line in known)
    said = (
        f"{both} of {len(known)} agree in both scores: recall within {agreement['recall']:g} of the published one, "
        f"median distance within {agreement['median_distance']:.0%}."
    )
    return ["", said] if known else []


def _agreement(line: Row) -> str:
    if line["agrees"] is None:
        return ""
    return {0: "no", len(SCORES): "yes"}.get(len(line["agrees"]), f"{''.join(line['agrees']).replace('_', ' ')} only")


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_spread(line: Row, score: str, digits: int) -> str:
    spread = line[f"{score}_spread"]
    return f"{line[score]:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def save_figure(rows: Sequence[Row], curve: Sequence[Sequence[float]], path: Path) -> None:
    """Draw a row per distance and a column per batch: generated points over the curve, with their scores above.

    ``rows`` are the arms of one seed.
    """
    distances, batches = (list(dict.fromkeys(row[key] for row in rows)) for key in ("distance", "batch"))
    figure, axes = subplots(
        len(distances), len(batches), figsize=(2.3 * len(batches) + 0.4, 2.5 * len(distances) + 0.5), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    side = MARGIN * max(abs(number) for point in curve for number in point)
    for row in rows:
        axis = axes[distances.index(row["distance"])][batches.index(row["batch"])]
        axis.plot(*zip(*curve, strict=True), color=CURVE, linewidth=1)
        axis.scatter(*zip(*row["points"], strict=True), s=2, linewidths=0, alpha=0.6, color=GENERATED, zorder=2)
        axis.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")
        axis.set_title(f"recall {row['recall']:.2f}, median distance {row['median_distance']:.3f}", fontsize=8)
    for distance, line in zip(distances, axes, strict=True):
        line[0].set_ylabel(TITLES[distance], fontsize=10)
    for batch, axis in zip(batches, axes[0], strict=True):
        axis.set_title(f"batch {batch}\n\n{axis.get_title()}", fontsize=8)
    figure.suptitle("Generated points (blue) over the curve", fontsize=11)
    figure.savefig(path, dpi=90)
