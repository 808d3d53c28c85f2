"""Read run directories: configuration, results, log, and whether the run is finished."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pmf_lightning.utils.bounded_files import read_json, read_rows, read_yaml
from pmf_lightning.utils.cache import ERROR, SWEEP
from pmf_lightning.utils.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
STATES = ("finished", "failed", "stopped", "missing")


@dataclass(frozen=True)
class Run:
    """One run; ``name`` is its folder relative to the requested root.

    ``summary`` and ``record`` (run.json) are empty if the file is missing; ``error`` (error.txt) is None then.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    record: Mapping[str, Any]
    error: str | None

    @property
    def seed(self) -> int | None:
        """The seed in the configuration; raises UserError if it is no integer."""
        seed = self.config.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UserError(f"{self.folder / 'config.yaml'}: seed={seed!r} is no whole number; move this run away")
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
        return self.error or f"at {self._progress()}, if it is not still running"

    def _progress(self) -> str:
        images = self.log[-1].get("images", 0) if self.log else 0
        planned = self.config.get("images")
        return f"{images:,} of {planned:,} images" if isinstance(planned, int) else f"{images:,} images"

    @property
    def started(self) -> str:
        """The start time in run.json; empty if unknown."""
        return str(self.record.get("started") or "")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a row that a kill truncated."""
        path = self.folder / "metrics.jsonl"
        rows = read_rows(path) if path.is_file() else []
        return [row for row in rows if _finite(row.get("images"))]

    @property
    def samples(self) -> Path | None:
        """The last sample grid: in grids/, or for a saved run next to its summary.json."""
        places = (self.folder / "grids" / "final.png", self.folder / "final.png")
        return next((path for path in places if path.is_file()), None)

    @property
    def is_kept(self) -> bool:
        """Whether this folder has the small files of --keep, and not the run itself."""
        return self.samples is not None and self.samples.parent == self.folder

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
    """Return all runs below ``root``, in the order of their folders, including those that failed before they began.

    Runs elsewhere that sweep.json of ``root`` lists are included. Raises UserError if there is no such folder, no run
    in it, or a file that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give a folder of runs, such as runs/pmf_table2/small")
    found = [path.relative_to(root).parent for name in ("config.yaml", ERROR) for path in root.rglob(name)]
    folders = {root / place for place in found if "wandb" not in place.parts}  # W&B has its own config.yaml there
    below = {folder.resolve() for folder in folders}
    folders |= {folder for folder in _listed(root) if folder.resolve() not in below}
    if not any((folder / "config.yaml").is_file() for folder in folders):
        raise UserError(f"{root}: there is no run below it (no config.yaml); give a folder of run directories")
    return [read_run(folder, root) for folder in sorted(folders, key=_natural)]


def _listed(root: Path) -> list[Path]:
    """Return the existing run directories that sweep.json in ``root`` lists."""
    arms = _mapping(root / SWEEP, read_json).get("arms", [])
    if not isinstance(arms, list) or not all(_is_arm(one) for one in arms):
        raise UserError(f"{root / SWEEP}: its arms are no runs with a run_dir; move the file away")
    places = [root / one["run_dir"] for one in arms if one.get("run_dir")]
    return [place for place in places if any((place / name).is_file() for name in ("config.yaml", ERROR))]


def _is_arm(one: Any) -> bool:
    """Return whether an entry of sweep.json is valid: its run_dir is a path or null."""
    folder = one.get("run_dir") if isinstance(one, Mapping) else 0
    return folder is None or (isinstance(folder, str) and "\0" not in folder)


def read_run(folder: Path, root: Path) -> Run:
    """Return the run in ``folder``; raises UserError for a file that cannot be read."""
    name = Path(os.path.relpath(folder, root)).as_posix()
    error = folder / ERROR
    return Run(
        folder,
        folder.name if name == "." else name,
        _mapping(folder / "config.yaml", lambda path: read_yaml(path, lambda text: yaml.load(text, LOADER))),
        _mapping(folder / "summary.json", read_json),
        _mapping(folder / "run.json", read_json),
        " ".join(error.read_text().split()) or "it left an empty error.txt" if error.is_file() else None,
    )


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
    """Parse a file; returns an empty mapping if it is missing, raises UserError if it is no mapping."""
    if not path.is_file():
        return {}
    try:
        found = parse(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: it cannot be read ({first}); move this run away, or repeat it") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: it holds no keys and values; move this run away, or repeat it")
    return found
