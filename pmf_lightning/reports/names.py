"""Names of files."""

import re
from collections.abc import Sequence


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "sweep"


def slugs(texts: Sequence[str]) -> list[str]:
    """Return a different name for each text: what makes the same one gets a number."""
    names: list[str] = []
    for text in texts:
        name, number = slug(text), 1
        while name in names:
            number += 1
            name = f"{slug(text)}-{number}"
        names.append(name)
    return names
