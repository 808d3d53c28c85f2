"""Files that are computed once: cache folders and keys, atomic writes, and folders that commands write to."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.locks import FOR_EVER, held


def cache_root(cache_dir: str | None) -> Path:
    """Return the cache folder, made if missing: ``cache_dir``, or the user's own cache folder when that is empty.

    Raises UserError when the folder cannot be made or written.
    """
    try:
        root = Path(cache_dir or platformdirs.user_cache_dir("pmf_lightning")).expanduser().absolute()
    except RuntimeError as error:  # in containers, where HOME is not set and nobody knows the user
        raise UserError(f"cache folder: {error}; or set PMF_CACHE to a folder that can be written") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cache folder {root} cannot be written: set PMF_CACHE to a folder that can")
    return root


def digest(*parts: int | float | str | None) -> str:
    """Hash named values into 32 hex digits, the same in every process."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a free name beside ``path`` to write a file or a folder at; it becomes ``path`` if the block ends well.

    After an error or Ctrl-C nothing is left. A folder must not exist at ``path`` yet; a file is replaced.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; the others wait. Clears what a killed writer left behind."""
    with held(path.with_name(f".{path.name}.lock"), str(path), "is making it", patience=FOR_EVER):
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            _remove(partial)
        yield


def to_disk(path: Path) -> None:
    """Wait until a file or a folder is on the disk: a power cut could leave its name with too few bytes, or none."""
    if path.is_dir() and os.name == "nt":  # which opens no folder
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
