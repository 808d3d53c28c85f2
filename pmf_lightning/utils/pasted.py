"""Commands that are printed, so that they can be pasted into a shell."""

import shlex
from pathlib import Path


def path_argument(option: str, path: str | Path) -> str:
    """Return ``option=path`` as one word of a shell, which our commands take to the letter."""
    text = str(path)
    if text == "null" or text.startswith(("'", '"', "~")):
        text = f"./{text}"  # would otherwise be no path, or another
    return shlex.quote(f"{option}={text}")
