"""The one exception that commands print as a single line: bad input, named, with its remedy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the thing, the value and the remedy; commands print it and exit with 2."""


class Diverged(UserError):
    """Training met numbers that are not finite and ended itself; commands print the message and exit with 3."""


class NotSaved(UserError):
    """Training ended, but its last checkpoint could not be written; commands print the message and exit with 4."""


class ProcessLost(UserError):
    """Another process of the run is gone; commands print the message and exit with 5."""


def near(name: str, known: Iterable[str]) -> str:
    """Say what ``name`` could have been: the closest of ``known``, or all of them when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
