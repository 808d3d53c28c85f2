"""Read run directories and runs.json: configuration, results, log, and whether a run is finished."""

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pmf_lightning.reports.runs_file import RUNS, SAMPLES, unpack
from pmf_lightning.utils.bounded_files import read_json, read_rows, read_text, read_yaml
from pmf_lightning.utils.cache import ERROR, SWEEP
from pmf_lightning.utils.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
STATES = ("finished", "failed", "stopped", "missing")


@dataclass(frozen=True)
class Samples:
    """A picture with the last sample grid of a run; ``box`` is its part (left, top, right, bottom), None: all of it."""

    path: Path
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Run:
    """One run; ``name`` is its folder relative to the requested root.

    A run of runs.json has ``folder`` "<name>" next to that file, which does not exist. ``source`` is the file of its
    configuration. ``summary`` and ``record`` (run.json) are empty if there is none; ``error`` (error.txt) is None then.
    ``overrides`` are those that sweep.json or else the command lists.
    """

    folder: Path
    name: str
    source: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    record: Mapping[str, Any]
    error: str | None
    log: Sequence[Mapping[str, Any]]
    samples: Samples | None
    overrides: Sequence[str] = ()

    @property
    def seed(self) -> int | None:
        """The seed in the configuration; raises UserError if it is not an integer."""
        seed = self.config.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UserError(f"{self.source}: seed={seed!r} is not an integer; move this run away")
        return seed

    @property
    def state(self) -> str:
        """The state: "finished", "failed" or "stopped"; a run that is still training counts as "stopped"."""
        if self.summary and not self.summary.get("stopped_early"):
            return "finished"
        return "failed" if self.error else "stopped"

    @property
    def reason(self) -> str:
        """The reason why there is no result; empty for finished runs."""
        if self.state == "finished":
            return ""
        return self.error or f"at {self._progress()}, or it is still running"

    def _progress(self) -> str:
        images = self.log[-1].get("images", 0) if self.log else 0
        planned = self.config.get("images")
        return f"{images:,} of {planned:,} images" if isinstance(planned, int) else f"{images:,} images"

    @property
    def started(self) -> str:
        """The start time in run.json; empty if unknown."""
        return str(self.record.get("started") or "")

    def number(self, key: str) -> Any:
        """Return the value of ``key`` in summary.json ("by_steps.4.fd" for nested ones), None if it is missing.

        The full name of a distance ("fid50k_jit") stands for the short one in summary.json ("fid" or "fd").
        """
        if key == self.summary.get("metric"):
            return next((self.summary[short] for short in ("fid", "fd") if short in self.summary), None)
        value: Any = self.summary
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_runs(root: Path) -> list[Run]:
    """Return all runs below ``root``, including those that failed before they began.

    These are run directories and the runs elsewhere that sweep.json of ``root`` lists, in the order of their folders,
    then the runs in files runs.json, in their order there.
    Raises UserError if there is no such folder, no run in it, or a file that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give a folder of runs, such as runs/pmf_table2/small")
    overrides = _overrides_of_sweeps(root)
    folders = sorted(_run_dirs(root), key=_natural)
    runs = [read_run(folder, root, overrides.get(folder.resolve(), ())) for folder in folders]
    for path in sorted(root.rglob(RUNS)):
        if "wandb" not in path.relative_to(root).parts:
            runs += _read_runs_file(path, root)
    if not any(run.config for run in runs):
        raise UserError(
            f"{root}: there is no run below it (no config.yaml and no {RUNS}); give a folder of run directories"
        )
    return runs


def _run_dirs(root: Path) -> set[Path]:
    found = [path.relative_to(root).parent for name in ("config.yaml", ERROR) for path in root.rglob(name)]
    folders = {root / place for place in found if "wandb" not in place.parts}  # W&B has its own config.yaml there
    below = {folder.resolve() for folder in folders}
    listed = [root / one["run_dir"] for one in _entries(root / SWEEP) if one.get("run_dir")]
    there = [folder for folder in listed if any((folder / name).is_file() for name in ("config.yaml", ERROR))]
    return folders | {folder for folder in there if folder.resolve() not in below}


def _overrides_of_sweeps(root: Path) -> dict[Path, list[str]]:
    """Return the overrides of each run directory that a sweep.json in ``root`` or below it lists."""
    found = {}
    for path in root.rglob(SWEEP):
        for one in _entries(path):
            if one.get("run_dir") and isinstance(overrides := one.get("overrides"), list):
                found[(path.parent / one["run_dir"]).resolve()] = [str(override) for override in overrides]
    return found


def _entries(path: Path) -> list[Mapping[str, Any]]:
    """Return the entries of a sweep.json, none if it is missing."""
    arms = _mapping(path, read_json).get("arms", [])
    if not isinstance(arms, list) or not all(map(_is_entry, arms)):
        raise UserError(f"{path}: an entry of arms is not a run with a run_dir; move the file away")
    return arms


def _is_entry(one: Any) -> bool:
    """Return whether an entry of sweep.json is valid: its run_dir is a path or null."""
    folder = one.get("run_dir") if isinstance(one, Mapping) else 0
    return folder is None or (isinstance(folder, str) and "\0" not in folder)


def read_run(folder: Path, root: Path, overrides: Sequence[str] = ()) -> Run:
    """Return the run in ``folder``; raises UserError for a file that cannot be read.

    Without ``overrides`` they are taken from the command in run.json.
    """
    name = Path(os.path.relpath(folder, root)).as_posix()
    error, log, grid = folder / ERROR, folder / "metrics.jsonl", folder / "grids" / "final.png"
    record = _mapping(folder / "run.json", read_json)
    return Run(
        folder,
        folder.name if name == "." else name,
        str(folder / "config.yaml"),
        _mapping(folder / "config.yaml", lambda path: read_yaml(path, lambda text: yaml.load(text, LOADER))),
        _mapping(folder / "summary.json", read_json),
        record,
        " ".join(parsed(error, read_text).split()) or "error.txt is empty" if error.is_file() else None,
        [row for row in (read_rows(log) if log.is_file() else []) if _finite(row.get("images"))],
        Samples(grid) if grid.is_file() else None,
        overrides or _overrides_of_command(record.get("command")),
    )


def _read_runs_file(path: Path, root: Path) -> list[Run]:
    """Return the runs of a runs.json; raises UserError if it cannot be read."""
    runs, picture = [], path.parent / SAMPLES
    for run in parsed(path, lambda path: unpack(_as_mapping(read_json(path)))):
        folder, record, box = path.parent / run["name"], run.get("record", {}), run.get("samples")
        runs.append(
            Run(
                folder,
                Path(os.path.relpath(folder, root)).as_posix(),
                f"{path}: {run['name']}",
                run.get("config", {}),
                run.get("summary", {}),
                record,
                run.get("error"),
                [row for row in run.get("log", []) if _finite(row.get("images"))],
                Samples(picture, tuple(box)) if box and picture.is_file() else None,
                run.get("overrides") or _overrides_of_command(record.get("command")),
            )
        )
    return runs


def _overrides_of_command(command: Any) -> list[str]:
    try:
        tokens = shlex.split(str(command or ""))
    except ValueError:  # an unbalanced quote
        tokens = str(command).split()
    return [token for token in tokens if "=" in token and not token.startswith("-")]


def log_name(rows: Sequence[Mapping[str, Any]], key: str, summary: Mapping[str, Any]) -> str | None:
    """Return the log's name of a key of summary.json: "fd" is fd_digits, "fid" is fid50k_jit."""
    names = list(dict.fromkeys(name for row in rows for name in row if "/" not in name))
    wanted = (key, summary.get("metric") if key in ("fd", "fid") else None)
    if (name := next((name for name in wanted if name in names), None)) is not None:
        return name
    return next((name for name in names if re.match(rf"{re.escape(key)}(_|\d)", name)), None)


def _natural(path: Path) -> list[Any]:
    """Sort key that puts seed10 after seed9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    """Parse a file; returns an empty mapping if it is missing, raises UserError if it is not a mapping."""
    return parsed(path, lambda path: _as_mapping(parse(path))) if path.is_file() else {}


def _as_mapping(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError("it has no keys and values")
    return found


def parsed(path: Path, parse: Any) -> Any:
    """Parse a file; raises UserError if it cannot be read."""
    try:
        return parse(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: it cannot be read ({first}); move it away, or repeat the run") from error
