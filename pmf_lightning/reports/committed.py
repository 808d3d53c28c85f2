"""Save finished sweeps in a form small enough to commit, and list them in experiments/README.md."""

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmf_lightning.reports.claims import Verdict
from pmf_lightning.reports.formatting import slugs
from pmf_lightning.reports.markdown import MARK, headlines
from pmf_lightning.reports.plots import save_strips
from pmf_lightning.reports.runs import Run
from pmf_lightning.reports.runs_file import RUNS, SAMPLES, pack, to_text
from pmf_lightning.reports.section import section_of
from pmf_lightning.reports.sweeps import Sweep, read_sweeps
from pmf_lightning.utils.cache import atomic_write, writable
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

README = "README.md"

MOST_ROWS = 60  # maximum rows of a log

_LOGGED = re.compile(r"(step$|images$|loss_|force_norm_|fd|fid|is\d|class_accuracy)[^/]*$")

_FILES = ("checkpoint", "best", "grid", "curves", "time_bins", "reference")  # entries of summary.json that are paths

_PATH = re.compile(r"(?<![\w.:/~})\]])/[\w.+@=-]+(?:/[\w.+@=-]*)*")


def is_generated(readme: Path) -> bool:
    """Return whether a README.md was written by this program, and not by hand."""
    return readme.is_file() and readme.read_text().startswith(MARK)


def save_runs(sweep: Sweep, folder: Path) -> None:
    """Write runs.json and samples.png of a sweep to ``folder``, replacing earlier ones.

    Raises UserError if the folder has a README.md that was written by hand, or the runs themselves.
    """
    if (folder / README).is_file() and not is_generated(folder / README):
        raise UserError(f"--save {folder}: its {README} was written by hand; name another folder")
    if any(run.folder.resolve().is_relative_to(folder.resolve()) for run in sweep.runs):
        raise UserError(f"--save {folder}: the runs themselves are in it; name another folder")
    writable(folder, "--save")
    boxes = save_strips(sweep, folder / SAMPLES, coarse=True)
    packed = []
    for arm, name in zip(sweep.arms, slugs([arm.name for arm in sweep.arms]), strict=True):
        packed += [_saved(run, f"{name}-seed{run.seed}", boxes.get(run.folder)) for run in arm.runs]
        if not arm.runs and arm.reason:
            packed.append({"name": f"{name}-seed0", "error": without_paths(arm.reason)})
    with atomic_write(folder / RUNS) as draft:
        draft.write_text(to_text(pack(packed)) + "\n", encoding="utf-8", newline="\n")


def _saved(run: Run, name: str, box: Sequence[int] | None) -> dict[str, Any]:
    """Return the entry of a run in runs.json; ``box`` is its part of samples.png."""
    entry = {
        "name": name,
        "overrides": [] if run.config.get("study") else list(run.overrides),
        "config": dict(run.config),
        "record": dict(run.record),
        "summary": {key: run.summary[key] for key in run.summary if key not in _FILES},
        "error": run.error,
        "samples": box and list(box),
        "log": thinned(run.log),
    }
    filled = {key: value for key, value in entry.items() if value or key in ("name", "config")}
    return without_paths(filled)


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


_TABLE_MARK = re.compile(r"<!-- /?studies -->")


def write_index(folder: Path) -> tuple[Path, int]:
    """Rewrite the table between the two marks of ``folder``/README.md; return its path and the number of sweeps.

    Raises UserError if there is no such file, or if it does not have two marks.
    """
    path = folder / README
    if not path.is_file():
        raise UserError(f"--index {folder}: it has no {README}; write one with <!-- studies --> and <!-- /studies -->")
    text = path.read_text()
    marks = list(_TABLE_MARK.finditer(text))
    if len(marks) != 2:
        raise UserError(
            f"--index {folder}: {README} has {len(marks)} marks; put <!-- studies --> before the table and "
            "<!-- /studies --> after it, each once"
        )
    saved = sorted(path.parent for path in folder.glob(f"*/{RUNS}") if is_generated(path.parent / README))
    sections = [section_of(sweep) for place in saved for sweep in read_sweeps([place])]
    lines = [section.headline for section in sections]
    table = headlines(lines, [place.name for place in saved]) if lines else "There is no study yet."
    with atomic_write(path) as draft:
        written = "\n\n".join([*_total([section.verdict for section in sections]), table])
        draft.write_text(f"{text[: marks[0].end()]}\n\n{written}\n\n{text[marks[1].start() :]}", newline="\n")
    return path, len(lines)


def _total(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a sentence on all studies with claims: how many are reproduced, and how many claims hold."""
    answers = [verdict.answer for verdict in verdicts if verdict.claims]
    if not answers:
        return []
    yes, partly, no = (answers.count(answer) for answer in ("yes", "partly", "no"))
    held, claims = (sum(getattr(verdict, name) for verdict in verdicts) for name in ("held", "claims"))
    studies = counted(len(answers), "study", "studies")
    return [f"{studies}: {yes} reproduced, {partly} partly, {no} not. {held} of {claims} claims hold."]
