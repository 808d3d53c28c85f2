"""Folders that commands write to, and the names that several rooms know in them."""

from pathlib import Path

from pmf_lightning.errors import UserError

ERROR = "error.txt"  # in the directory of a run: why the last attempt failed
SWEEP = "sweep.json"  # in the folder of a sweep: which runs it is made of, and where they lie
RUN_DIR = "PMF_LIGHTNING_RUN_DIR"  # in the environment: the directory that the run of this process has chosen


def writable(folder: Path, key: str) -> Path:
    """Make ``folder`` and see that it can be written; UserError, naming the option ``key``, where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the same run may have been faster
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror}); set another {key}") from error
    return folder
