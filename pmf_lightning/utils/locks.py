"""File locks that stop two runs or sweeps from writing to the same directory at once.

The lock is the file system's (filelock). It ends with its process, also if that is killed, so an existing lock file
alone means nothing. Forked processes do not inherit it.
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
    """Another process holds the lock."""


@contextmanager
def held(path: Path, what: str, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock on the file ``path`` during the block; the file is created and removed again.

    If another process holds the lock, this one waits ``patience`` seconds and then raises LockHeld: "``what``: process
    1234 on ... ``doing``". On a file system without locks, a warning is printed and the block runs unlocked. Raises
    OSError if the file cannot be written.
    """
    lock = FileLock(path, timeout=patience, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockHeld(f"{what}: {_holder(path)} {doing}") from error
    except OSError as error:
        if error.errno not in NONE_HERE:
            raise
        _warn(
            f"this file system has no locks ({error.strerror}); do not start a second process that writes to "
            f"{path.parent}"
        )
        yield
        return
    try:
        _sign(path)
        yield
    finally:
        with suppress(PermissionError):  # Windows cannot remove an open file
            path.unlink(missing_ok=True)  # before the release: a waiting process sees that it is gone and makes another
        lock.release()


def _sign(path: Path) -> None:
    """Write the lock's holder into the file, after the first byte, which Windows hides from other processes."""
    with path.open("r+b") as file:
        file.seek(1)
        file.truncate()  # remove the text of a killed holder
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()} (since {stamp})\n".encode())


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(1)
            return file.read().decode(errors="replace").strip() or "another process"
    except OSError:  # it has just been removed
        return "another process"


@cache  # once
def _warn(text: str) -> None:
    print(f"warning: {text}")
