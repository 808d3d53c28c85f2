"""Class names of a model: read from untrusted files, found by the user's words, and as titles of a grid's columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.errors import UserError, suggestions

CLASSES_FILE = "classes.json"  # of a run directory: "class_names" and "left_out"


def stored_names(found: Any, classes: int | None) -> list[str] | None:
    """Return the names that a file holds, None if it holds none for each of ``classes`` classes."""
    valid = isinstance(found, list) and len(found) == classes and all(isinstance(name, str) for name in found)
    return found if valid else None


def names_beside(checkpoint: Path, classes: int | None) -> list[str] | None:
    """Return the class names in the run directory of a checkpoint of before checkpoints held them, None without."""
    try:
        return stored_names(read_json(checkpoint.absolute().parent.parent / CLASSES_FILE)["class_names"], classes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def class_numbers(chosen: Any, classes: int, names: Sequence[str] | None) -> list[int]:
    """Return the labels of ``chosen``, a list of numbers or names; capitals may differ. Raises UserError."""
    if not isinstance(chosen, list) or any(type(one) not in (int, str) for one in chosen):
        raise UserError(f"classes={chosen}: give a list of numbers or names, such as classes=[3] or classes=[3,7]")
    if not chosen:
        raise UserError("classes=[]: name at least one class, or leave it out for all")
    return [_number(one, classes, names) for one in chosen]


def _number(chosen: int | str, classes: int, names: Sequence[str] | None) -> int:
    if isinstance(chosen, int):
        if not 0 <= chosen < classes:
            raise UserError(
                f"classes={chosen}: {chosen} is not a class; the classes of this model are 0 to {classes - 1}"
            )
        return chosen
    if names is None:
        raise UserError(f"classes={chosen}: this model has no class names; give numbers, 0 to {classes - 1}")
    for same in (lambda name: name == chosen, lambda name: name.casefold() == chosen.casefold()):
        if found := [label for label, name in enumerate(names) if same(name)]:
            return found[0]
    hint = suggestions(chosen, names) if len(names) <= 20 else _close(chosen, names)
    raise UserError(f"classes={chosen}: {chosen} is not a class of this model; {hint}")


def _close(chosen: str, names: Sequence[str]) -> str:
    """Return a hint for one of many names, without listing all of them."""
    hint = suggestions(chosen, names)
    return hint if hint.startswith("did") else f"it has {len(names)}, such as {', '.join(names[:3])}"


def column_titles(labels: Sequence[int], columns: int, names: Sequence[str] | None) -> list[str] | None:
    """Return the class name of each column of a grid filled row by row; None if a column has several classes."""
    if names is None or any(label != labels[place % columns] for place, label in enumerate(labels)):
        return None
    return [names[label] for label in labels[:columns]]
