"""sweep.json: which runs a multirun is made of and where they lie, for reports and for the next sweep."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import ERROR, SWEEP, atomic_write

FORMAT = 1


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    ``arm`` is its id within a study, or the swept overrides without the seed; ``run_dir`` is None where a run chooses
    by itself and has not yet; ``error`` is why the last attempt failed.
    """

    arm: str
    seed: int
    run_dir: Path | None
    overrides: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def state(self) -> str:
        """finished, failed, stopped or missing, by what lies in the run directory."""
        folder = self.run_dir
        if self.error:
            return "failed"
        if folder is None:
            return "missing"
        if not _summary(folder)["stopped_early"]:
            return "finished"
        if (folder / ERROR).is_file():
            return "failed"
        return "stopped" if (folder / "config.yaml").is_file() else "missing"

    @property
    def images_per_second(self) -> float:
        """The speed of training that a finished run measured; 0 where there is none."""
        speed = _summary(self.run_dir).get("images_per_second") if self.state == "finished" else None
        return float(speed) if type(speed) in (int, float) else 0.0


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "summary.json")
    except (OSError, ValueError):
        return {"stopped_early": True}
    return {"stopped_early": False, **found} if isinstance(found, dict) else {"stopped_early": True}


def read(folder: Path) -> dict[str, Any] | None:
    """Return what sweep.json of ``folder`` says, None where there is none that can be read."""
    try:
        found = read_json(folder / SWEEP)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("arms"), list):
        return None
    return found if all(isinstance(arm, dict) and _is_folder(arm.get("run_dir")) for arm in found["arms"]) else None


def _is_folder(name: Any) -> bool:
    return name is None or (isinstance(name, str) and "\0" not in name)


def write(folder: Path, arms: Sequence[SweepRun], about: dict[str, Any]) -> None:
    """Write sweep.json; runs of an earlier sweep stay in it while their directories exist.

    ``about`` has title, study, scale, command and started. Paths are relative to ``folder``.
    """
    own = {arm.run_dir.resolve() for arm in arms if arm.run_dir is not None}
    earlier = (read(folder) or {"arms": []})["arms"]
    kept = [one for one in earlier if one.get("run_dir") and (folder / one["run_dir"]).is_dir()]
    kept = [one for one in kept if (folder / one["run_dir"]).resolve() not in own]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / SWEEP) as draft:
        listed = [*(_plain(arm, folder) for arm in arms), *kept]
        draft.write_text(json.dumps({"format": FORMAT, **about, "arms": listed}, indent=2) + "\n")


def _plain(arm: SweepRun, folder: Path) -> dict[str, Any]:
    there = None if arm.run_dir is None else os.path.relpath(arm.run_dir, folder)
    return {**asdict(replace(arm, run_dir=None)), "run_dir": there, "state": arm.state}
