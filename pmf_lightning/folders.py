"""Folders that commands write to."""

from pathlib import Path

from pmf_lightning.errors import UserError


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
