"""The table of a sweep (a row per arm, our numbers next to the paper's), and the table of runs for results.csv."""

from collections.abc import Sequence
from dataclasses import dataclass

from pmf_lightning.reports.formatting import higher_is_better, is_number, show_paper
from pmf_lightning.reports.sweeps import ReportArm, Sweep, text

TITLES = {
    "fid": "FID",
    "fd": "fd",
    "is": "inception score",
    "class_accuracy": "class accuracy",
    "images_per_second": "images/s",
    "wall_seconds": "seconds",
    "nfe": "NFE",
}
_RUN = ("steps", "n", "fd_floor", "real_accuracy", "skipped_steps")  # additional columns of results.csv


@dataclass(frozen=True)
class Row:
    """An arm's cells; ``best`` is the index of the cell that is the best of its column, if any."""

    cells: Sequence[str]
    state: str
    best: int | None = None


@dataclass(frozen=True)
class Table:
    """A header and rows of text."""

    header: Sequence[str]
    rows: Sequence[Row]


def table_of(sweep: Sweep) -> Table:
    """Return the table of a sweep. Columns without numbers are omitted, and "state" if all arms are finished."""
    arms = sweep.arms
    settings = list(dict.fromkeys(key for arm in arms for key in arm.columns))
    keys = [key for key in _keys(sweep) if any(arm.spread(key) for arm in arms)]
    header = ["arm", *settings]
    columns = [[arm.name for arm in arms], *([arm.columns.get(key, "") for arm in arms] for key in settings)]
    if sweep.study and any(arm.paper is not None for arm in arms):
        header.append(f"paper: {sweep.study.paper_short}")
        columns.append([show_paper(arm.paper) if arm.paper is not None else "" for arm in arms])
    place = len(header) if sweep.measure in keys else None
    for key in keys:
        header.append(f"ours: {title(key)}" if key == sweep.measure and sweep.study else title(key))
        columns.append([str(arm.spread(key) or "") for arm in arms])
    header.append("seeds")
    columns.append([_seeds(arm, sweep.measure) for arm in arms])
    if any(arm.state != "finished" for arm in arms):
        header.append("state")
        columns.append([arm.state for arm in arms])
    best = best_arm(sweep)
    cells = zip(*columns, strict=True)
    return Table(
        header, [Row(c, arm.state, place if arm is best else None) for c, arm in zip(cells, arms, strict=True)]
    )


def best_arm(sweep: Sweep) -> ReportArm | None:
    """Return the arm with the best mean, None if fewer than two have one."""
    known = [(value.mean, arm) for arm in sweep.arms if sweep.measure and (value := arm.spread(sweep.measure))]
    if len(known) < 2:
        return None
    return (max if higher_is_better(sweep.measure) else min)(known, key=lambda item: item[0])[1]


def title(key: str) -> str:
    """Return the table title of a key of summary.json."""
    return TITLES.get(key, key.replace("_", " "))


def _keys(sweep: Sweep) -> list[str]:
    """Return the keys to show, the measure first."""
    claimed = [claim.of for claim in sweep.study.claims if claim.of] if sweep.study else []
    measure = [sweep.measure] if sweep.measure else []
    return list(dict.fromkeys([*measure, *claimed, *TITLES]))


def _seeds(arm: ReportArm, measure: str | None) -> str:
    """Return the number of runs whose measure is averaged, and of how many if not of all."""
    counted = len(arm.finished) - len(arm.without(measure))
    return str(counted) if counted == len(arm.runs) else f"{counted} of {len(arm.runs)}"


def runs_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of results.csv: a row per run and per arm without runs, with unrounded numbers."""
    settings = list(dict.fromkeys(key for arm in sweep.arms for key in arm.columns))
    numbers = [
        key for key in dict.fromkeys([*_keys(sweep), *_RUN]) if any(is_number(r.number(key)) for r in sweep.runs)
    ]
    header = ["sweep", "arm", "seed", "state", "reason", *settings, "paper", *numbers, "started", "commit", "run"]
    rows = []
    for arm in sweep.arms:
        shown = [arm.columns.get(key, "") for key in settings]
        paper = "" if arm.paper is None else str(arm.paper)
        for run in arm.runs:
            rows.append(
                [_name(sweep), arm.name, text(run.seed), run.state, run.reason, *shown, paper]
                + [str(run.number(key)) if is_number(run.number(key)) else "" for key in numbers]
                + [run.started, str(run.record.get("commit") or ""), run.name]
            )
        if not arm.runs:
            blank = [""] * (len(numbers) + 3)
            rows.append([_name(sweep), arm.name, "", arm.state, arm.reason, *shown, paper, *blank])
    return header, rows


def _name(sweep: Sweep) -> str:
    return f"{sweep.name}/{sweep.study.scale}" if sweep.study else sweep.name
