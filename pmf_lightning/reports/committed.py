"""Save finished sweeps in a form small enough to commit, and list them in experiments/README.md."""

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pmf_lightning.reports.formatting import slugs
from pmf_lightning.reports.markdown import MADE, headlines
from pmf_lightning.reports.plots import rows_of, run_of_samples, save_small, strip_of
from pmf_lightning.reports.runs import Run
from pmf_lightning.reports.section import section_of
from pmf_lightning.reports.sweeps import Sweep, read_sweeps
from pmf_lightning.utils.cache import ERROR, atomic_write, writable
from pmf_lightning.utils.errors import UserError

README = "README.md"

MOST_ROWS = 60  # maximum rows of a log

_LOGGED = re.compile(r"(step$|images$|loss_|force_norm_|fd|fid|is\d|class_accuracy)[^/]*$")

_FILES = ("checkpoint", "best", "grid", "curves", "time_bins", "reference")  # entries of summary.json that are paths

_PATH = re.compile(r"(?<![\w.:/~])/[\w.+@=-]+(?:/[\w.+@=-]*)*")


def is_kept(folder: Path) -> bool:
    """Return whether a folder contains a saved sweep: its README.md has the mark of this program."""
    readme = folder / README
    return readme.is_file() and readme.read_text().startswith(MADE)


def keep_runs(sweep: Sweep, folder: Path) -> None:
    """Copy the files that the page of a sweep needs to ``folder``/runs, replacing earlier ones.

    Raises UserError if that would overwrite files of another origin, or the runs themselves.
    """
    if (folder / README).is_file() and not is_kept(folder):
        raise UserError(f"--keep {folder}: it has a {README} written by hand; name another folder")
    if any(run.folder.resolve().is_relative_to(folder.resolve()) for run in sweep.runs):
        raise UserError(f"--keep {folder}: the runs lie there themselves; name another folder")
    writable(folder, "--keep")
    old = folder / "runs"
    with atomic_write(old) as draft:
        for arm, name in zip(sweep.arms, slugs([arm.name for arm in sweep.arms]), strict=True):
            shown = run_of_samples(arm)
            for run in arm.runs:
                _keep_run(run, draft / f"{name}-seed{run.seed}", rows_of(sweep) if run is shown else None)
            if not arm.runs and arm.reason:
                place = draft / f"{name}-seed0"
                place.mkdir(parents=True)
                (place / ERROR).write_text(without_paths(arm.reason) + "\n")
        if old.is_dir():
            shutil.rmtree(old)


def _keep_run(run: Run, place: Path, rows: int | None) -> None:
    """Save one run with ``rows`` rows of its samples; None: without samples."""
    place.mkdir(parents=True)
    config = yaml.safe_dump(without_paths(dict(run.config)), sort_keys=False, allow_unicode=True, width=120)
    (place / "config.yaml").write_text(config)
    if run.summary:
        _write_json(place / "summary.json", {key: run.summary[key] for key in run.summary if key not in _FILES})
    if run.record:
        _write_json(place / "run.json", run.record)
    if run.error:
        (place / ERROR).write_text(without_paths(run.error) + "\n")
    if log := thinned(run.log):
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    if rows is not None:
        save_small(strip_of(run, rows), place / "final.png", coarse=True)


def thinned(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a subset of the rows of a log: evenly spaced ones, those with a metric, and the last; in four digits."""
    every = -(-len(rows) // MOST_ROWS) if len(rows) > 2 * MOST_ROWS else 1  # a thinned log stays as it is
    measured = {number for number, row in enumerate(rows) if any(re.match(r"fd|fid|class_accuracy", n) for n in row)}
    if len(measured) > MOST_ROWS:
        measured = set(sorted(measured)[:: -(-len(measured) // MOST_ROWS)])
    chosen = measured | set(range(0, len(rows), every)) | ({len(rows) - 1} if rows else set())
    return [{n: _short(v) for n, v in rows[number].items() if _LOGGED.match(n)} for number in sorted(chosen)]


def without_paths(value: Any) -> Any:
    """Return a nested value in whose strings absolute paths are cut to their last name and the host name is removed."""
    if isinstance(value, Mapping):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub(lambda found: ".../" + found.group().rstrip("/").rpartition("/")[2], value)
    host = platform.node()
    return re.sub(rf"\b{re.escape(host)}\b", "host", text) if len(host) > 3 else text


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(without_paths(content), indent=2) + "\n")


MARK = re.compile(r"<!-- /?studies -->")


def write_index(folder: Path) -> tuple[Path, int]:
    """Rewrite the table between the two marks of ``folder``/README.md; return its path and the number of sweeps.

    Raises UserError if there is no such file, or if it does not have two marks.
    """
    path = folder / README
    if not path.is_file():
        raise UserError(f"--index {folder}: it has no {README}; write one with <!-- studies --> and <!-- /studies -->")
    text = path.read_text()
    marks = list(MARK.finditer(text))
    if len(marks) != 2:
        raise UserError(
            f"--index {folder}: {README} has {len(marks)} marks; put <!-- studies --> before the table and "
            "<!-- /studies --> after it, each once"
        )
    kept = sorted(place for place in folder.iterdir() if place.is_dir() and is_kept(place))
    lines = [section_of(sweep).headline for place in kept for sweep in read_sweeps([place])]
    table = headlines(lines, [place.name for place in kept]) if lines else "Nothing is kept yet."
    with atomic_write(path) as draft:
        draft.write_text(f"{text[: marks[0].end()]}\n\n{table}\n\n{text[marks[1].start() :]}", newline="\n")
    return path, len(lines)
