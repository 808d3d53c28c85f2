"""Kinds of options (path, integer, list, ...): a check of the value and the text of its error message."""

import difflib
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from pmf_lightning.utils.errors import UserError

MOST = 10**12  # of a count: the longest training sees 10**9 images
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Kind:
    """Kind of an option: ``takes(value)`` checks a value, ``words`` are the remedy in the error message.

    ``verbatim`` defines how text on the command line is read: "path", literally; "text", literally unless it contains
    commas, which mean several values; "paths", one path or a list of paths in square brackets, each literally; "", by
    Hydra's grammar. ``null`` is True if null is also valid.
    """

    words: str
    takes: Callable[[Any], bool]
    verbatim: Literal["path", "paths", "text", ""] = ""
    null: bool = False

    def or_null(self) -> "Kind":
        """Return the same kind with null allowed."""
        return replace(self, null=True, words=f"{self.words}, or null")

    def check(self, option: str, value: Any) -> None:
        """Raise a one-line UserError that names ``option`` if ``value`` is invalid."""
        if (value is None and self.null) or self.takes(value):
            return
        hint = _hint(option, value, self)
        raise UserError(f"{option}={shown(value)}: {self.words}{hint}")


def shown(value: Any) -> str:
    """Format a value as on the command line."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _hint(option: str, value: Any, kind: Kind) -> str:
    """Return a hint at the probably intended value, "" if there is none."""
    if value == "":
        return " (the value is empty; a shell variable that is not set leaves it so)"
    if isinstance(value, float) and value.is_integer() and kind.takes(int(value)):
        return f"; write {option}={int(value)}"
    if value is None and kind.verbatim == "path":
        return f"; a file or folder with this name is {option}=./null"
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and kind.takes([value]):
        return f"; write {option}=[{value}]"
    return ""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    most = sys.float_info.max  # larger integers overflow a float
    return (_is_integer(value) or isinstance(value, float)) and -most <= value <= most


def integer(lowest: int = 1, most: int = MOST, words: str | None = None) -> Kind:
    """Return the kind of an integer from ``lowest`` to ``most``."""
    limit = "" if most >= MOST else f" and at most {most:,}"
    words = words or f"set it to an integer, {lowest} or more{limit}"
    return Kind(words, lambda value: _is_integer(value) and lowest <= value <= most)


def number(lowest: int | float = -math.inf, most: int | float = math.inf, above: int | float = -math.inf) -> Kind:
    """Return the kind of a finite number from ``lowest`` to ``most``, and greater than ``above``."""
    words = "give one number"
    if lowest > -math.inf and most < math.inf:
        words += f" from {lowest:g} to {most:g}"
    elif lowest > -math.inf:
        words += f", {lowest:g} or more"
    elif above > -math.inf:
        words += f" above {above:g}"
    return Kind(words, lambda value: _is_number(value) and lowest <= value <= most and value > above)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def choice(*names: str) -> Kind:
    """Return the kind of an option with a fixed set of names."""
    return Kind(f"give {' or '.join(names)}", lambda value: isinstance(value, str) and value in names, "text")


def list_of(kind: Kind, length: int | None = None, least: int = 0, words: str | None = None) -> Kind:
    """Return the kind of a list with entries of ``kind``: exactly ``length`` of them, or at least ``least``."""

    def takes(value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < least:
            return False
        return (length is None or len(value) == length) and all(map(kind.takes, value))

    each = kind.words.removeprefix("give ").removeprefix("set it to ").replace("one ", "a ", 1)
    many = "a list" if length is None else f"a list of {length}"
    return Kind(words or f"give {many} in square brackets, each {each}", takes)


def either(*kinds: Kind, words: str | None = None) -> Kind:
    """Return the kind of a value that is valid for one of ``kinds``."""
    words = words or f"give {' or '.join(kind.words.removeprefix('give ') for kind in kinds)}"
    verbatim = kinds[0].verbatim if len({kind.verbatim for kind in kinds}) == 1 else ""
    return Kind(words, lambda value: any(kind.takes(value) for kind in kinds), verbatim)


def mapping(*needed: str, words: str) -> Kind:
    """Return the kind of a mapping from names to values with at least the keys ``needed``."""

    def takes(value: Any) -> bool:
        return isinstance(value, Mapping) and not any(str(key).startswith("_") for key in value) and _has(value, needed)

    return Kind(words, takes)


def part(*needed: str, words: str) -> Kind:
    """Return the kind of a mapping from which Hydra builds an object: ``_target_``, and its arguments ``needed``."""
    return Kind(words, lambda value: isinstance(value, Mapping) and _has(value, ("_target_", *needed)))


def _has(value: Mapping[Any, Any], needed: Sequence[str]) -> bool:
    return all(key in value for key in needed)


def _is_device(value: Any) -> bool:
    name, colon, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    return name in ("cpu", "cuda", "mps") and (not colon or (index.isascii() and index.isdigit() and len(index) < 5))


PATH = Kind("give the path of a file or folder", _is_text, "path")
PATHS = Kind(
    "give the path of a file or folder, or several in square brackets, such as [a,b]",
    lambda value: _is_text(value) or (NAMES.takes(value) and len(value) > 0),
    "paths",
)
TEXT = Kind("give a word or a text", _is_text, "text")
NAMES = Kind(
    "give a list of names in square brackets",
    lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_text, value)),
)
YES_NO = Kind("give true or false", lambda value: isinstance(value, bool))
DEVICE = Kind("torch has no such device; use cpu, cuda or cuda:1", _is_device, "text")
DEVICE_OR_AUTO = Kind(
    "torch has no such device; use auto, cpu, cuda or cuda:1",
    lambda value: value == "auto" or _is_device(value),
    "text",
)
DURATION = Kind(
    "give days:hours:minutes:seconds, such as 00:12:00:00 for 12 hours",
    lambda value: isinstance(value, str) and re.fullmatch(r"\d+:\d{1,2}:\d{1,2}:\d{1,2}", value) is not None,
    "text",
)
SHARE = number(0, 1)
ANYTHING = Kind("give a value", lambda value: True)


# Keys by which Hydra builds an object.
HYDRAS: Mapping[str, Kind] = {
    "_target_": Kind("give the dotted name of a class or a function that can be imported", _is_text, "text"),
    "_partial_": YES_NO,
    "_recursive_": YES_NO,
    "_convert_": choice("none", "partial", "object", "all"),
    "_args_": list_of(ANYTHING),
}


def kind_of_annotation(annotation: Any) -> Kind:
    """Return the kind of a parameter's annotation (bool, int, float, str, list, Literal); otherwise ``ANYTHING``."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    simple = {bool: YES_NO, int: integer(-MOST), float: number(), str: TEXT, list: list_of(ANYTHING)}
    kinds = []
    for option in options:
        if get_origin(option) is Literal:
            literals = get_args(option)
            kinds.append(Kind(f"give {' or '.join(map(str, literals))}", lambda value, known=literals: value in known))
        elif option in simple:
            kinds.append(simple[option])
        elif option is not type(None):
            return ANYTHING
    kind = ANYTHING if not kinds else kinds[0] if len(kinds) == 1 else either(*kinds)
    return kind.or_null() if type(None) in options else kind


def unknown(option: str, known: Sequence[str], remedy: str = "") -> UserError:
    """Return the error for an unknown option, with similar names of ``known``."""
    return UserError(f"{option}: there is no such option; {remedy or _near(option, known)}")


def _near(option: str, known: Sequence[str]) -> str:
    above, _, name = option.rpartition(".")
    siblings = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == above}
    close = [siblings[one] for one in difflib.get_close_matches(name, siblings, n=3, cutoff=0.6)]
    close = close or [one for one in known if one.rpartition(".")[2] == name][:3]
    close = close or difflib.get_close_matches(option, known, n=3, cutoff=0.6)
    listed = f"{above} has {', '.join(sorted(siblings))}" if above and siblings else "--help lists what there is"
    return (
        f"did you mean {' or '.join(close)}? {listed}"
        if close and above
        else (f"did you mean {' or '.join(close)}?" if close else listed)
    )
