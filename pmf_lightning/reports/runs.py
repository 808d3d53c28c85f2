"""What lies in a run directory: configuration, numbers, log, and whether it came to its end."""

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

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
STATES = ("finished", "failed", "stopped", "missing")


@dataclass(frozen=True)
class Run:
    """One run; ``name`` is its folder, seen from the folder that was asked for.

    ``summary`` and ``record`` (run.json) are empty where there is no such file, ``error`` (error.txt) is None.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    record: Mapping[str, Any]
    error: str | None

    @property
    def seed(self) -> int | None:
        """The seed of its configuration; raises UserError for what is none."""
        seed = self.config.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UserError(f"{self.folder / 'config.yaml'}: seed={seed!r} is no whole number; move this run away")
        return seed

    @property
    def state(self) -> str:
        """Return "finished", "failed" or "stopped", which is also what a run is that still goes on."""
        if self.summary and not self.summary.get("stopped_early"):
            return "finished"
        return "failed" if self.error else "stopped"

    @property
    def reason(self) -> str:
        """Why there is no result; empty for finished runs."""
        if self.state == "finished":
            return ""
        return self.error or f"at {self._progress()}, if it is not still running"

    def _progress(self) -> str:
        images = self.log[-1].get("images", 0) if self.log else 0
        planned = self.config.get("images")
        return f"{images:,} of {planned:,} images" if isinstance(planned, int) else f"{images:,} images"

    @property
    def started(self) -> str:
        """When it began, as run.json has it; empty where that is unknown."""
        return str(self.record.get("started") or "")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a row that a kill cut short is left out."""
        path = self.folder / "metrics.jsonl"
        rows = read_rows(path) if path.is_file() else []
        return [row for row in rows if _finite(row.get("images"))]

    @property
    def samples(self) -> Path | None:
        """The last grid of samples: of a run in grids/, of a kept one beside its numbers."""
        places = (self.folder / "grids" / "final.png", self.folder / "final.png")
        return next((path for path in places if path.is_file()), None)

    @property
    def is_kept(self) -> bool:
        """Tell whether these are the small files that --keep leaves, not the run itself."""
        return self.samples is not None and self.samples.parent == self.folder

    def number(self, key: str) -> Any:
        """Return what summary.json holds under ``key``, "by_steps.4.fd" for what lies deeper; None where it has none.

        The full name of a distance ("fid50k_jit") means the one that goes by the short name there.
        """
        if key == self.summary.get("metric"):
            return next((self.summary[short] for short in ("fid", "fd") if short in self.summary), None)
        value: Any = self.summary
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_runs(root: Path) -> list[Run]:
    """Return all runs below ``root``, in the order of their folders; those that failed before they began, too.

    And those that lie elsewhere, as sweep.json of ``root`` says.

    Raises UserError where there is no such folder, no run in it, or a file that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give a folder of runs, such as runs/pmf_table2/small")
    found = [path.relative_to(root).parent for name in ("config.yaml", ERROR) for path in root.rglob(name)]
    folders = {root / place for place in found if "wandb" not in place.parts}  # there W&B has a config.yaml of its own
    below = {folder.resolve() for folder in folders}
    folders |= {folder for folder in _listed(root) if folder.resolve() not in below}
    if not any((folder / "config.yaml").is_file() for folder in folders):
        raise UserError(f"{root}: there is no run below it (no config.yaml); give a folder of run directories")
    return [read_run(folder, root) for folder in sorted(folders, key=_natural)]


def _listed(root: Path) -> list[Path]:
    """Return the run directories that a sweep left in ``root`` to be found."""
    arms = _mapping(root / SWEEP, read_json).get("arms", [])
    if not isinstance(arms, list) or not all(_is_arm(one) for one in arms):
        raise UserError(f"{root / SWEEP}: its arms are no runs with a run_dir; move the file away")
    places = [root / one["run_dir"] for one in arms if one.get("run_dir")]
    return [place for place in places if any((place / name).is_file() for name in ("config.yaml", ERROR))]


def _is_arm(one: Any) -> bool:
    """Tell whether an arm of sweep.json has a directory, or none yet."""
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
    """Return under which name a log has what summary.json calls ``key``: "fd" is fd_digits, "fid" fid50k_jit."""
    names = list(dict.fromkeys(name for row in rows for name in row if "/" not in name))
    wanted = (key, summary.get("metric") if key in ("fd", "fid") else None)
    if (name := next((name for name in wanted if name in names), None)) is not None:
        return name
    return next((name for name in names if re.match(rf"{re.escape(key)}(_|\d)", name)), None)


def _natural(path: Path) -> list[Any]:
    """Sort seed10 behind seed9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    """Return what a file holds, nothing where it is missing; UserError where it is no mapping."""
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
