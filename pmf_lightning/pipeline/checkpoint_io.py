"""Checkpoint files: atomic writes that survive power failures and full disks, and integrity checks."""

import errno
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf_lightning.utils.cache import to_disk
from pmf_lightning.utils.errors import called

LAST, BEST = "last.ckpt", "best.ckpt"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def numbered(step: int) -> str:
    """Return the file name of the checkpoint of a step."""
    return f"step-{step:08d}.ckpt"


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a new file and fsync it. On an error the file is removed; OSError for a full disk or another disk error.

    The tensors are written one at a time, without a second copy in memory.
    """
    path.unlink(missing_ok=True)  # a killed process's file may be hard-linked to a checkpoint: never overwrite it
    if shutil.disk_usage(path.parent).free < size(checkpoint):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        with path.open("xb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        cause = _error_of_disk(error)
        raise cause if cause is not None else error from None


def _error_of_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error of torch.save, None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def size(checkpoint: Mapping[str, Any]) -> int:
    """Return the approximate size of a checkpoint file in bytes: its tensors, each with a small overhead."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, tensors(checkpoint))}
    return sum(storages.values()) + 256 * len(storages)


def room(checkpoint: Mapping[str, Any], folder: Path) -> str:
    """Return as text the bytes that a checkpoint needs and those free in its folder; a quota may allow less."""
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free"
    except OSError as error:
        free = f"{folder}: {error.strerror}"
    return f"it needs {size(checkpoint) / 1e6:,.1f} MB, {free}"


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested mappings and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def name(draft: Path, last: Path, others: list[Path]) -> None:
    """Rename a written ``draft`` to ``last`` and hard-link (or else copy) it to ``others``, in the same folder.

    At every moment each name refers to a complete checkpoint, and ``last`` exists if it did before.
    """
    for path in others:
        spare = path.with_suffix(".link.draft")
        spare.unlink(missing_ok=True)
        try:
            os.link(draft, spare)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            shutil.copyfile(draft, spare)
            to_disk(spare)
        os.replace(spare, path)
    os.replace(draft, last)
    try:
        to_disk(last.parent)  # a rename is durable once its folder is synced
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def clear_drafts(folder: Path) -> None:
    """Remove the unfinished files of killed processes."""
    for path in folder.glob("*.draft"):
        path.unlink(missing_ok=True)


def remove_oldest(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` most recently written numbered checkpoints (by time, not by step number)."""
    for path in sorted(folder.glob("step-*.ckpt"), key=_written)[:-keep]:
        path.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint exists and its checksums match; reads the file once."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None  # torch.load does not check the checksums
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def newest_intact(folder: Path, but: Path | None = None) -> Path | None:
    """Return the most recently written intact checkpoint of a folder, excluding ``but``, or None."""
    files = sorted(folder.glob("*.ckpt"), key=_written, reverse=True)
    return next((path for path in files if path != but and is_intact(path)), None)


def intact_alternative(path: Path) -> str:
    """Return a hint at an intact checkpoint in the folder of a damaged one."""
    other = newest_intact(path.parent, but=path)
    return f"intact next to it: {called('ckpt')}={other}" if other else "no other checkpoint next to it is intact"


def _written(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name
