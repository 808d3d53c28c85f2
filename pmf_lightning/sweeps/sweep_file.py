"""Read and write sweep.json: the runs of a multirun and their directories, for reports and for the next sweep."""

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

    ``arm`` is its id within a study, or the swept overrides without the seed. ``run_dir`` is None if the run chooses it
    itself and has not done so yet. ``error`` is the reason why the last attempt failed. ``left`` is whether the sweep
    still has to train it, even if a shorter run is finished in its directory.
    """

    arm: str
    seed: int
    run_dir: Path | None
    overrides: list[str] = field(default_factory=list)
    error: str | None = None
    left: bool = False

    @property
    def state(self) -> str:
        """The state by the files in the run directory: "finished", "failed", "stopped" or "missing"."""
        folder = self.run_dir
        if self.error:
            return "failed"
        if folder is None:
            return "missing"
        complete = not _summary(folder)["stopped_early"]
        if complete and not self.left:
            return "finished"
        if not complete and (folder / ERROR).is_file():
            return "failed"
        return "stopped" if (folder / "config.yaml").is_file() else "missing"

    @property
    def images_per_second(self) -> float:
        """The measured training speed of a finished run, also of one that is to be trained further, else 0."""
        finished = replace(self, left=False).state == "finished"
        speed = _summary(self.run_dir).get("images_per_second") if finished else None
        return float(speed) if type(speed) in (int, float) else 0.0


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "summary.json")
    except (OSError, ValueError):
        return {"stopped_early": True}
    return {"stopped_early": False, **found} if isinstance(found, dict) else {"stopped_early": True}


def read(folder: Path) -> dict[str, Any] | None:
    """Return the contents of sweep.json in ``folder``, None if there is no readable one."""
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
    """Write sweep.json. Runs of an earlier sweep stay listed while their directories exist.

    ``about`` has title, study, scale, command and started. Paths are relative to ``folder``.
    """
    own = {arm.run_dir.resolve() for arm in arms if arm.run_dir is not None}
    earlier = (read(folder) or {"arms": []})["arms"]
    others = [one for one in earlier if one.get("run_dir") and (folder / one["run_dir"]).is_dir()]
    others = [one for one in others if (folder / one["run_dir"]).resolve() not in own]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / SWEEP) as draft:
        listed = [*(_plain(arm, folder) for arm in arms), *others]
        draft.write_text(json.dumps({"format": FORMAT, **about, "arms": listed}, indent=2) + "\n")


def _plain(arm: SweepRun, folder: Path) -> dict[str, Any]:
    relative = None if arm.run_dir is None else os.path.relpath(arm.run_dir, folder)
    fields = {key: value for key, value in asdict(replace(arm, run_dir=None)).items() if key != "left"}
    return {**fields, "run_dir": relative, "state": arm.state}
