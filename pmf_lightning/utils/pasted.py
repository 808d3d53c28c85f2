"""Shell quoting for commands that are printed to be pasted into a shell."""

import shlex
from pathlib import Path


def path_argument(option: str, path: str | Path) -> str:
    """Return ``option=path`` as one shell word that our commands read literally."""
    text = str(path)
    if text == "null" or text.startswith(("'", '"', "~")):
        text = f"./{text}"  # otherwise read as null, a quoted text or a home folder
    return shlex.quote(f"{option}={text}")
