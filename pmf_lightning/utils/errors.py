"""Errors that commands print as one line: bad input with its remedy, and exhausted memory or disk."""

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_CALLED: ContextVar[Mapping[str, str]] = ContextVar("names of options in error messages")


class UserError(Exception):
    """Bad input. The message names the option, the value and the remedy; commands print it and exit with 2."""


class NotResumed(UserError):
    """The existing run is complete or differs from the requested one; nothing is written to its directory."""


class Diverged(UserError):
    """Training stopped at non-finite numbers; commands print the message and exit with 3."""


class NotSaved(UserError):
    """Training ended, but its last checkpoint could not be written; commands print the message and exit with 4."""


class ProcessLost(UserError):
    """Another process of the run died; commands print the message and exit with 5."""


class OutOfResources(UserError):
    """Memory or disk space ran out during work; commands print the message and exit with 1."""


def translate_os_error(error: BaseException) -> BaseException:
    """Convert errors of exhausted memory or disk to ``OutOfResources``; return any other error unchanged."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return OutOfResources(
            f"{where}there is no room left on its disk ({error.strerror}); make room, or write elsewhere"
        )
    if (
        type(error).__name__ == "OutOfMemoryError"
    ):  # torch's class, matched by name because this module does not import torch
        message = " ".join(str(error).split(". ")[:2])
        return OutOfResources(
            f"{message}; training takes less with a smaller micro_batch= or activation_checkpointing=true, others with "
            "batch_size="
        )
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return OutOfResources("out of memory; set a smaller n=, batch=, micro_batch= or batch_size=")
    return error


@contextmanager
def options_called(**names: str) -> Iterator[None]:
    """Let errors inside name options as the caller's user knows them, such as ``options_called(ckpt="init_from")``."""
    before = _CALLED.set(names)
    try:
        yield
    finally:
        _CALLED.reset(before)


def called(option: str) -> str:
    """Return the name of ``option`` in error messages: its own, or that of ``options_called``."""
    return _CALLED.get({}).get(option, option)


def some_of(names: Sequence[str], most: int = 6, separator: str = ", ") -> str:
    """Return the first ``most`` names for an error message, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def suggestions(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt ``name``: the closest of ``known`` in any case, or all if none is close."""
    known = sorted(known)
    spelt = {one.casefold(): one for one in known}
    close = [spelt[one] for one in difflib.get_close_matches(name.casefold(), spelt, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
