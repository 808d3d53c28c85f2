"""Cache folders and keys, hashes of files, atomic writes, and checks of output folders."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import platformdirs

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.locks import FOR_EVER, held


def cache_root(cache_dir: str | None) -> Path:
    """Return the cache folder: ``cache_dir``, or the user's cache folder if that is empty. It is created if missing.

    Raises UserError if the folder cannot be created or written.
    """
    try:
        root = Path(cache_dir or platformdirs.user_cache_dir("pmf_lightning")).expanduser().absolute()
    except RuntimeError as error:  # in containers where HOME is not set and the user has no entry
        raise UserError(f"cache folder: {error}; or set PMF_CACHE to a folder that can be written") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cache folder {root} cannot be written: set PMF_CACHE to a folder that can")
    return root


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex; it is cached until the file's size or modification time changes."""
    status = path.stat()
    return _sha256(str(path.absolute()), status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: int | float | str | None) -> str:
    """Hash values into 32 hex digits, the same in every process."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; the file or folder written there is renamed to ``path`` on success.

    It is removed after an error or Ctrl-C. A folder must not exist at ``path`` yet; a file is replaced.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; the folder written there takes the place of ``path`` on success."""
    older = path.with_name(f".{path.name}.{uuid.uuid4().hex}.older")
    with atomic_write(path) as draft:
        yield draft
        if path.exists():
            path.replace(older)
    shutil.rmtree(older, ignore_errors=True)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Let one process at a time write ``path``; the others wait. Partial files of killed writers are removed."""
    with held(path.with_name(f".{path.name}.lock"), str(path), "is making it", patience=FOR_EVER):
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            _remove(partial)
        yield


def to_disk(path: Path) -> None:
    """fsync a file or a folder: after a power cut the name could exist with too few bytes, or none."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
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


ERROR = "error.txt"  # file in a run directory: why the last attempt failed

SWEEP = "sweep.json"  # file in a sweep folder: its runs and their directories

RUN_DIR = "PMF_LIGHTNING_RUN_DIR"  # environment variable: the run directory of this process


def writable(folder: Path, key: str) -> Path:
    """Create ``folder`` and check that it can be written; UserError, naming the option ``key``, if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the run may have removed it
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror}); set another {key}") from error
    return folder


def check_not_there(out: str | Path, results: Iterable[Path], force: bool) -> None:
    """Raise UserError if one of the files ``results`` of ``out`` exists, unless ``force`` allows to replace it."""
    there = next((path for path in results if path.exists()), None)
    if there is not None and not force:
        name = "" if there == Path(out).expanduser() else f"{there} "
        raise UserError(f"out={out}: {name}exists already; set another out, or force=true to replace it")


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove ``folder`` after an error if it was made inside and is still empty, and likewise the folders above it."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]  # False if it cannot be seen
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds files, or was never made
            for one in missing:
                one.rmdir()
        raise
