"""Checkpoints as files: whole or not there, also after a power failure or on a full disk, and known to be whole."""

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

LAST, BEST = "last.ckpt", "best.ckpt"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def numbered(step: int) -> str:
    """Return the name of the checkpoint of a step among those that are kept."""
    return f"step-{step:08d}.ckpt"


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a new file; it is on the disk when this returns, and gone when it raises OSError, for want of room or else.

    The tensors go to the file one by one: there is no second copy of them in memory.
    """
    path.unlink(missing_ok=True)  # never write into what a killed process left: it may be a checkpoint's second name
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
    """Return what the disk said, which torch.save turns into an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def size(checkpoint: Mapping[str, Any]) -> int:
    """Return about how many bytes the file of a checkpoint has: its tensors, each with a little around it."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, tensors(checkpoint))}
    return sum(storages.values()) + 256 * len(storages)


def room(checkpoint: Mapping[str, Any], folder: Path) -> str:
    """Say how much room a checkpoint takes and how much there is in its folder; a quota may allow less."""
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
    """Give a written ``draft`` its names in the same folder: ``last``, and those of ``others``, which take no room.

    At no moment does a name lead to less than a whole checkpoint, or ``last`` to none if there was one.
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
        to_disk(last.parent)  # a rename is on the disk when its folder is
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def clear_drafts(folder: Path) -> None:
    """Remove what a killed process did not finish."""
    for path in folder.glob("*.draft"):
        path.unlink(missing_ok=True)


def remove_oldest(folder: Path, keep: int) -> None:
    """Keep the ``keep`` numbered checkpoints written last; others, such as those of an abandoned branch, go first."""
    for path in sorted(folder.glob("step-*.ckpt"), key=_written)[:-keep]:
        path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint is there with all its bytes as they were written; reads the file once."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None  # torch.load itself overlooks changed bytes
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return False


def newest_whole(folder: Path, but: Path | None = None) -> Path | None:
    """Return the whole checkpoint of a folder that was written last, ``but`` left out, or None."""
    files = sorted(folder.glob("*.ckpt"), key=_written, reverse=True)
    return next((path for path in files if path != but and is_whole(path)), None)


def whole_beside(path: Path) -> str:
    """Say which checkpoint could be taken in the place of a damaged one."""
    other = newest_whole(path.parent, but=path)
    return f"whole beside it: ckpt={other}" if other else "no other checkpoint beside it is whole"


def _written(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name
