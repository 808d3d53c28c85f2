"""Errors that commands print as a single line: bad input, named, with its remedy; a machine that ran out of room."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the thing, the value and the remedy; commands print it and exit with 2."""


class NotResumed(UserError):
    """A run that exists is another one than requested, or complete; nothing is written into its directory."""


class Diverged(UserError):
    """Training met numbers that are not finite and ended itself; commands print the message and exit with 3."""


class NotSaved(UserError):
    """Training ended, but its last checkpoint could not be written; commands print the message and exit with 4."""


class ProcessLost(UserError):
    """Another process of the run is gone; commands print the message and exit with 5."""


class OutOfResources(UserError):
    """Memory of a GPU or room on a disk ran out in the middle of work; commands print the message and exit with 1."""


def translate_os_error(error: BaseException) -> BaseException:
    """Return the ``OutOfResources`` that an error of the machine comes to, any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return OutOfResources(
            f"{where}there is no room left on its disk ({error.strerror}); make room, or write elsewhere"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this module is imported where torch is not
        said = " ".join(str(error).split(". ")[:2])
        return OutOfResources(
            f"{said}; training takes less with a smaller micro_batch= or recompute=true, others with chunk="
        )
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return OutOfResources("out of memory; set a smaller n=, batch=, micro_batch= or chunk=")
    return error


def suggestions(name: str, known: Iterable[str]) -> str:
    """Say what ``name`` could have been: the closest of ``known``, or all of them when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
