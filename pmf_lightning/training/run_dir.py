"""Choose and lock a run directory, record errors in it, and choose the checkpoint to resume."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.distributed.launched import srun_tasks
from pmf_lightning.pipeline.checkpoint_io import LAST, intact_alternative, is_intact, newest_intact
from pmf_lightning.pipeline.checkpoints import find_checkpoint
from pmf_lightning.pipeline.sources import RUNS, newest_run
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.cache import ERROR, RUN_DIR, writable
from pmf_lightning.utils.errors import NotResumed, UserError
from pmf_lightning.utils.locks import LockHeld, held

CHECKPOINTS = "checkpoints"


def known(request: RunRequest) -> Path | None:
    """Return the run directory that a command names, None for a new one. Creates nothing.

    It is ``run_dir`` if set. Else it is the newest run of this model and data that has a checkpoint (``ckpt=last``), or
    the given one (``ckpt=<run directory>``). Raises UserError.
    """
    if request.run_dir is not None:
        return request.run_dir
    if not _is_first() and RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    if (folder := _run_of(request.ckpt)) is not None:
        return folder
    if "TORCHELASTIC_RUN_ID" in os.environ or srun_tasks() > 1:
        raise UserError("run_dir=null: under torchrun and srun every process would choose its own; set run_dir")
    return _newest(request.parent) if request.ckpt == "last" else None


def choose(request: RunRequest, folder: Path | None = None) -> Path:
    """Create the run directory of a run, check that it is writable, and return it.

    It is ``folder``, or the ``known`` one, or a new one under runs/, named after model, data and the time. Raises
    UserError, also if it has a run that ``request`` does not resume.
    """
    folder = folder or known(request) or _fresh(request.parent)
    if not _resumes(request.ckpt, folder) and any((folder / "checkpoints").glob("*.ckpt")):
        raise NotResumed(
            f"run_dir={folder}: it holds a finished or stopped run; add ckpt=last to resume that one, or set another "
            "run_dir"
        )
    writable(folder / "checkpoints", "run_dir")
    os.environ[RUN_DIR] = str(folder)
    return folder


def _resumes(ckpt: str | None, folder: Path) -> bool:
    """Return whether ``ckpt`` belongs to the run in ``folder``."""
    if ckpt in (None, "last", "auto"):
        return ckpt is not None
    return folder.resolve() in (Path(ckpt).resolve(), *Path(ckpt).resolve().parents)


def _run_of(ckpt: str | None) -> Path | None:
    """Return the run directory if ``ckpt`` is one or is its folder of checkpoints, else None.

    A checkpoint file gives None: a run that starts from it is a new run.
    """
    if ckpt in (None, "last", "auto") or not Path(ckpt).is_dir():
        return None
    folder = Path(ckpt)
    if folder.name == CHECKPOINTS and any(folder.glob("*.ckpt")):
        return folder.parent
    return folder if any((folder / CHECKPOINTS).glob("*.ckpt")) else None


def lock_run_dir(folder: Path) -> AbstractContextManager[None]:
    """Context manager that locks ``folder`` against other runs; raises LockHeld if another run has the lock.

    Only the first process of a run takes the lock.
    """
    if not first_process():
        return nullcontext()
    return held(folder / ".lock", f"run_dir={folder}", "is training there; wait for it, or end it")


def first_process() -> bool:
    """Return whether this is the first process of its run, over all nodes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextmanager
def record_errors(run_dir: str | None, ckpt: str | None, in_sweep: bool = False) -> Iterator[None]:
    """Write an exception that ends the run to error.txt of its directory, as one line; a later success deletes it.

    A run that is refused (UserError) before its first logged step leaves no directory behind, unless it was there
    before. In a sweep the error is kept, with ckpt=auto in a new directory: the report shows why an arm is missing.
    """
    there = run_dir is not None and Path(run_dir).exists()
    if _is_first():
        os.environ.pop(RUN_DIR, None)  # set by the previous job of a multirun
    try:
        yield
    except (LockHeld, NotResumed):
        raise  # the files there belong to the other run
    except Exception as error:
        folder = _own(run_dir)
        if folder and isinstance(error, UserError) and not (in_sweep or there or _began(folder)):
            _remove(folder)
        elif folder and (folder.is_dir() or ckpt == "auto"):
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ERROR).write_text(f"{kind}{' '.join(str(error).split())}\n")
        raise
    if folder := _own(run_dir):
        (folder / ERROR).unlink(missing_ok=True)


def _began(folder: Path) -> bool:
    """Return whether a run directory holds a logged step or a checkpoint."""
    return (folder / "metrics.jsonl").exists() or any((folder / CHECKPOINTS).glob("*.ckpt"))


def _remove(folder: Path) -> None:
    """Remove a run directory, and under runs/ the folder of its model and data if it is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    if RUNS in folder.parents:
        with suppress(OSError):
            folder.parent.rmdir()


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _own(run_dir: str | None) -> Path | None:
    """Return the directory of this run if it is known and this is the process that writes there, else None."""
    folder = run_dir or os.environ.get(RUN_DIR)
    return Path(folder) if folder and _is_first() else None


def checkpoint_to_resume(ckpt: str | None, folder: Path | None) -> Path | None:
    """Return the checkpoint that ``ckpt`` names, or None to start from step 0; raises UserError if it is missing.

    ``ckpt`` is a file, a run directory, or last or auto (both of ``folder``); the last three take the run's last.ckpt.
    If last.ckpt is damaged or missing, the newest complete checkpoint next to it is used, with a warning.
    """
    if ckpt is None:
        return None
    if ckpt not in ("auto", "last"):
        run = _run_of(ckpt)
        if run is None:
            return _undamaged(find_checkpoint(ckpt))
        folder = run
    elif folder is None:
        raise UserError(f"ckpt={ckpt}: it resumes the run in run_dir; set run_dir")
    path = folder / CHECKPOINTS / LAST
    if is_intact(path):
        return path
    damage = f"{path} is damaged" if path.is_file() else f"{path} is missing"
    if (other := newest_intact(path.parent)) is not None:
        _warn(f"{damage}; resuming {other}, the newest that is complete")
        return other
    if path.is_file():
        raise UserError(f"ckpt={ckpt}: {damage}, and {intact_alternative(path)}; start a new run in another run_dir")
    if ckpt == "last":
        raise UserError(f"ckpt=last: {folder} holds no checkpoint; leave ckpt out to start a new run")
    return None


def _undamaged(path: Path) -> Path:
    if zipfile.is_zipfile(path) and not is_intact(path):  # a file of another format is rejected when it is read
        raise UserError(f"ckpt={path}: damaged; {intact_alternative(path)}")
    return path


@rank_zero_only
def _warn(text: str) -> None:
    print(f"warning: {text}")


def _newest(parent: Path) -> Path:
    found = newest_run(parent)
    if found is None:
        raise UserError(
            f"ckpt=last: no run with a checkpoint under {parent}; give model= and data= of the run, or its run_dir="
        )
    return found


def _fresh(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (parent / (stamp if not again else f"{stamp}_{again}") for again in range(1000))
    for folder in names:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue  # created by another job in the same second
        except OSError as error:
            raise UserError(f"run_dir={folder}: cannot be made ({error.strerror}); set another run_dir") from error
        return folder
    raise UserError(f"run_dir: no free name under {parent}; set run_dir")
