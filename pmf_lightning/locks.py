"""A file that one process at a time holds: two runs, or two sweeps, do not write to the same directories at once.

The lock is the file system's (fcntl) and ends with its process, also where that is killed: the file alone says nothing.
"""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO

from pmf_lightning.errors import UserError

NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


class Held(UserError):
    """Another process holds what this one needs."""


@contextmanager
def held(path: Path, what: str, doing: str) -> Iterator[None]:
    """Hold the file ``path``, made for it and taken away again, while the block runs; not inherited by processes.

    Where the file system has no locks a warning says so, and nothing is held. Raises Held: "``what``: process 1234 on
    ... ``doing``", where another process holds the file; OSError where it cannot be written.
    """
    file = _taken(path, what, doing)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is held: see _taken
            file.close()


def _taken(path: Path, what: str, doing: str) -> TextIO | None:
    while True:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if error.errno not in NONE_HERE:
                raise Held(f"{what}: {holder} {doing}") from error
            _warn(f"no locks in this file system ({error.strerror}); let no second process write to {path.parent}")
            return None
        if is_there:
            break
        file.close()  # its last holder has just taken it away
    file.truncate(0)  # of one that was killed
    file.write(f"process {os.getpid()} on {platform.node()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
    file.flush()
    return file


@cache  # once
def _warn(text: str) -> None:
    print(f"warning: {text}")
