"""A file that one process at a time holds: two runs, or two sweeps, do not write to the same directories at once.

The lock is the file system's (filelock) and ends with its process, also where that is killed: the file alone says
nothing. Processes that this one forks do not hold it.
"""

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from pmf_lightning.utils.errors import UserError

NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems
FOR_EVER = -1.0


class LockHeld(UserError):
    """Another process holds what this one needs."""


@contextmanager
def held(path: Path, what: str, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the file ``path``, made for it and taken away again, while the block runs; not inherited by processes.

    Where another process holds it, this one waits for ``patience`` seconds, then raises Held: "``what``: process 1234
    on ... ``doing``". Where the file system has no locks a warning says so, and nothing is held. Raises OSError where
    the file cannot be written.
    """
    lock = FileLock(path, timeout=patience, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockHeld(f"{what}: {_holder(path)} {doing}") from error
    except OSError as error:
        if error.errno not in NONE_HERE:
            raise
        _warn(f"no locks in this file system ({error.strerror}); let no second process write to {path.parent}")
        yield
        return
    try:
        _sign(path)
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file
            path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes another
        lock.release()


def _sign(path: Path) -> None:
    """Write down who holds the lock, behind the first byte, which others cannot read under Windows."""
    with path.open("r+b") as file:
        file.seek(1)
        file.truncate()  # of one that was killed
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()} (since {stamp})\n".encode())


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(1)
            return file.read().decode(errors="replace").strip() or "another process"
    except OSError:  # it has just been taken away
        return "another process"


@cache  # once
def _warn(text: str) -> None:
    print(f"warning: {text}")
