"""Find the checkpoint that a run resumes, and check that it is the same run, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.pipeline.checkpoint_io import intact_alternative
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.migrate import migrate_config
from pmf_lightning.pipeline.trusted import plain
from pmf_lightning.training import run_dir
from pmf_lightning.training.same_run import Change, Comparison, compare
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.bounded_files import read_json, read_yaml
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import NotResumed, UserError, some_of
from pmf_lightning.utils.hydra_compat import yaml_loader

_STATE = ("global_step", "optimizer_states", "lr_schedulers", "loops")  # training state besides the weights
_ANOTHER = "or start another run (another run_dir=, without ckpt=), which begins with new weights"


@dataclass(frozen=True)
class Start:
    """The start of training: step 0, or the ``step`` of ``checkpoint``, after ``images`` images.

    ``wandb_run`` is the id of the W&B run in the checkpoint. ``changes`` lists in one line the options that differ from
    the checkpoint's. ``stamp`` identifies the version of the file. ``init_from`` describes the weights that the stored
    run started from, None for the seed's.
    """

    checkpoint: Path | None = None
    step: int = 0
    images: int = 0
    wandb_run: str | None = None
    changes: str = ""
    stamp: tuple[int, ...] = ()
    init_from: dict[str, Any] | None = None

    @property
    def line(self) -> str:
        """The line printed when a run resumes."""
        done = f"{counted(self.step, 'step')} ({counted(self.images, 'image')})"
        return f"resumes {self.checkpoint} after {done}; {self.changes}"


def find(request: RunRequest, folder: Path | None) -> Start:
    """Return the start of the requested run. ``folder`` is its run directory, None for a new one.

    Raises NotResumed if the checkpoint is of another run or already has all steps. Raises UserError if it is missing,
    damaged, or has no training state.
    """
    path = run_dir.checkpoint_to_resume(request.ckpt, folder)
    if path is None:
        return Start()
    stamp = _stamp(path)
    checkpoint = read_checkpoint(path)
    if missing := [name for name in _STATE if not checkpoint.get(name) and checkpoint.get(name) != 0]:
        raise UserError(f"ckpt={path}: it holds weights, but not the state of training ({', '.join(missing)})")
    compared = _compared(checkpoint["config"], request, path)
    if compared.refused:
        raise NotResumed(_another_run(compared.refused, f"the run of {path}"))
    step, batch = checkpoint["global_step"], checkpoint["config"].get("batch")
    if type(step) is not int or type(batch) is not int or type(checkpoint.get("images", 0)) is not int:
        raise UserError(f"ckpt={path}: its steps and images are not integers; {intact_alternative(path)}")
    if step > request.steps or (step == request.steps and not _lacks_summary(path, step, folder)):
        raise NotResumed(f"steps={request.steps}: {path} has {step} already; set more steps or images")
    images = checkpoint.get("images", step * batch)
    origin = plain(checkpoint["init_from"], f"ckpt={path}") if checkpoint.get("init_from") else None
    return Start(path, step, images, checkpoint.get("wandb_run"), _describe(compared), stamp, origin)


def _lacks_summary(path: Path, step: int, folder: Path | None) -> bool:
    """Return whether the checkpoint is the last of the run in ``folder``, which was killed before its summary."""
    if folder is None or folder.resolve() not in path.resolve().parents:
        return False
    return not _is_complete(_summary(folder), step)


def find_again(start: Start, request: RunRequest, folder: Path) -> Start:
    """Return ``start``, or find it anew if the checkpoint has changed. Call it once the run directory is locked."""
    if start.checkpoint is not None and _stamp(start.checkpoint) == start.stamp:
        return start
    return find(request, folder)


def finished(request: RunRequest) -> dict | None:
    """With ckpt=auto, return the summary of ``run_dir`` if this run is complete there; else None.

    Raises NotResumed if the directory has a run of another configuration.
    """
    if request.ckpt != "auto":
        return None
    if request.run_dir is None:
        raise UserError("ckpt=auto: it resumes the run in run_dir; set run_dir")
    folder = request.run_dir
    if not (folder / "config.yaml").is_file():
        return None
    compared = _compared(_read(folder / "config.yaml", folder), request, folder)
    found = _summary(folder)
    complete = _is_complete(found, request.steps)
    other = compared.with_effect if complete else compared.refused
    if found.get("early_stopping"):  # another patience or length resumes it
        complete = not compared.with_effect
    if other:
        raise NotResumed(_another_run(other, f"the {'finished ' * complete}run in run_dir={folder}"))
    return found if complete else None


def _summary(folder: Path) -> dict[str, Any]:
    """Return the summary of the run in ``folder``; empty without one."""
    path = folder / "summary.json"
    found = _read(path, folder) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _is_complete(summary: Mapping[str, Any], steps: int) -> bool:
    """Whether a run has taken ``steps`` steps, and has ended by itself."""
    taken = summary.get("steps")
    return isinstance(taken, int) and taken >= steps and summary.get("stopped_early") is False


def _read(path: Path, folder: Path) -> Any:
    """Parse a JSON or YAML file of a run directory; raises UserError if it cannot be read."""
    try:
        if path.suffix == ".json":
            return read_json(path)
        return read_yaml(path, lambda text: yaml.load(text, yaml_loader()))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"run_dir={folder}: {path.name} cannot be read ({reason}); set another run_dir") from error


def _compared(stored: Any, request: RunRequest, where: Path) -> Comparison:
    stored = plain(stored, str(where))
    try:
        stored = migrate_config(stored)
    except (AttributeError, KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{where}: its configuration cannot be read ({reason})") from error
    return compare(stored, request.config)


def _another_run(changes: list[Change], which: str) -> str:
    requested = some_of([one.after for one in changes], separator=" ")
    had = some_of([one.before for one in changes], separator=" ")
    moved = "; if the files have moved, put a link at the old path"
    hint = moved if any(one.key in ("data.root", "battery.reference") for one in changes) else ""
    return f"{requested}: {which} has {had}; set that to resume it, {_ANOTHER}{hint}"


def _describe(compared: Comparison) -> str:
    """Describe in one line the changed options, and the options that only one version of the program knows."""
    changed = some_of([one.text for one in compared.allowed])
    unknown = some_of([one.text for one in compared.unknown])
    parts = [f"changed: {changed}" if changed else "no option changed"]
    parts += [f"options of one version only, not compared: {unknown}"] if unknown else []
    return "; ".join(parts)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns
