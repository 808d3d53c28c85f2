"""Prepare typed overrides for Hydra: quote paths and names so that they are read literally, one-line errors.

Hydra's grammar reads ``2026_11`` as a number, and ``=``, commas, brackets, quotes and non-ASCII letters as syntax.
Values of options that are paths or names (config/option_table.py) are quoted here if Hydra would misread them.
In a multirun, commas still separate values; a comma inside one needs quotes: data.root='"a,b"'.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from pmf_lightning.config.groups import is_group
from pmf_lightning.config.option_kinds import PATH, Kind
from pmf_lightning.config.option_table import kind_of
from pmf_lightning.utils.errors import UserError

_FORM = re.compile(r"(\+\+|\+|~)?([^=]*)(?:=(.*))?", re.DOTALL)
_SWEEP = re.compile(r"\s*(choice|range|interval|glob|sort|shuffle|tag|int|float|str|bool|json_str|extend_list)\(")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Typed:
    """Parsed override: the sign ("+", "++", "~" or ""), the option, and the value (None if there is no "=")."""

    sign: str
    option: str
    value: str | None

    @property
    def text(self) -> str:
        """The override as a string for Hydra."""
        return f"{self.sign}{self.option}" + ("" if self.value is None else f"={self.value}")


def split(override: str) -> Typed:
    """Split an override into sign, option and value."""
    sign, option, value = _FORM.fullmatch(override).groups()
    return Typed(sign or "", option, value)


def readable(overrides: Sequence[str], command: str, several: bool = False) -> list[str]:
    """Quote paths and names in the overrides of a command where Hydra needs it; ``several`` means with -m.

    Raises UserError for an override that Hydra cannot read.
    """
    return [_readable(split(override), command, several) for override in overrides]


def refuse_empty(overrides: Sequence[str]) -> None:
    """Raise UserError for an override with an empty value, which for a path would mean the working directory."""
    for typed in map(split, overrides):
        if typed.sign != "~" and typed.value is not None and not typed.value.strip():
            raise UserError(
                f"{typed.text}: the value is empty (a shell variable that is not set leaves it so); give one, or leave "
                f"{typed.option} out"
            )


def _readable(typed: Typed, command: str, several: bool) -> str:
    if typed.sign != "~":
        if typed.value is None:
            raise UserError(f"{typed.text}: options are written option=value; --help lists them")
        kind = None if is_group(typed.option) else kind_of(command, typed.option)
        if kind is not None and kind.verbatim:
            typed = Typed(typed.sign, typed.option, _verbatim(typed.option, typed.value, kind, several))
    parsed = parse(typed.text)
    if parsed.is_sweep_override() and not several:
        raise UserError(
            f"{typed.text}: these are several values; add -m for a run with each, or take them for one value: "
            f"{_in_quotes(typed)}"
        )
    return typed.text


def parse(override: str) -> Override:
    """Parse an override with Hydra; raises UserError if Hydra cannot read it."""
    typed = split(override)
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        why = " ".join(str(error).split())
        if typed.value is None or not _hydra_reads(f"{typed.sign}{typed.option}=1"):
            raise UserError(f"{override}: no option has such a name ({why})") from error
        if typed.value[0] in _BRACKETS:
            raise UserError(
                f"{override}: Hydra cannot read the value ({why}); close brackets, and put quotes around entries with "
                f"other signs than letters and digits: {typed.option}='[\"a=1\",2]'"
            ) from error
        raise UserError(
            f"{override}: Hydra takes a part of the value for syntax ({why}); put quotes around the value: "
            f"{_in_quotes(typed)}"
        ) from error


def swept(override: str) -> list[str] | None:
    """Expand a sweep override into single-value overrides, at most 1,000; None if it has one value.

    The list is empty for interval() and glob(), whose values are known only during the sweep.
    """
    parsed = parse(override)
    if not parsed.is_sweep_override():
        return None
    if not (parsed.is_choice_sweep() or parsed.is_range_sweep()):
        return []
    values = islice(parsed.sweep_string_iterator(), 1000)
    return [f"{parsed.get_key_element()}={value}" for value in values]


def _hydra_reads(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _in_quotes(typed: Typed) -> str:
    """Return an override with its value quoted, as it is typed in a shell."""
    return shell_word(f"{typed.sign}{typed.option}={quoted(typed.value or '')}")


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, so that it is read literally."""
    quote = Quote.single if '"' in text else Quote.double
    return QuotedString(text=text, quote=quote).with_quotes()


def as_typed(override: str) -> str:
    """Return an override of a sweep job, in which Hydra escapes special characters, as a user types it."""
    typed, parsed = split(override), parse(override)
    value = None if parsed.is_sweep_override() or parsed.is_delete() else parsed.value()
    if not isinstance(value, str) or value == typed.value or _is_quoted(typed.value or ""):
        return override
    return f"{typed.sign}{typed.option}={quoted(value)}"


def argument(option: str, value: object) -> str:
    """Return ``option=value`` as one shell word for printed commands; the value is a text or a number."""
    plain = f"{option}={value}"
    return shell_word(plain if not isinstance(value, str) or _means(plain, value) else f"{option}={quoted(value)}")


def shell_word(text: str) -> str:
    """Quote a text as one shell word."""
    return shlex.quote(text)


def _means(override: str, text: str) -> bool:
    """Whether Hydra reads the value of an override as exactly ``text``."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    if parsed.is_sweep_override():
        return False
    value = parsed.value()
    return isinstance(value, str) and value == text


def _verbatim(option: str, value: str, kind: Kind, several: bool) -> str:
    """Return the value of a path or a name, quoted so that Hydra reads it literally; in a multirun, each value."""
    if value == "null" or _is_quoted(value):
        return value
    if kind.verbatim == "paths" and value.startswith("[") and value.endswith("]"):
        each = [part.strip() for part in _at_commas(value[1:-1])]
        return "[" + ",".join(_one_of(option, part, PATH) for part in each) + "]"
    parts = _at_commas(value)
    if several or kind.verbatim == "text":
        if _SWEEP.match(value):
            return value
        if len(parts) > 1:
            if not several:
                return value  # rejected later, with a hint at -m
            return ",".join(_one_of(option, part.strip(), kind) for part in parts)
    if kind.verbatim in ("path", "paths") and (value == "~" or value.startswith("~/")):
        value = os.path.expanduser(value)
    return value if _means(f"{option}={value}", value) else quoted(value)


def _one_of(option: str, part: str, kind: Kind) -> str:
    if not part:
        raise UserError(f"{option}: one of the values between commas is empty; leave a comma out")
    return _verbatim(option, part, kind, several=True)


def _is_quoted(value: str) -> bool:
    """Whether a value is already quoted."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"x={value}")._value, QuotedString)
    except HydraException:
        return False


def _at_commas(value: str) -> list[str]:
    """Split a value at the commas outside quotes and brackets."""
    parts, open_brackets, quote = [""], [], None
    for letter in value:
        if quote:
            quote = None if letter == quote else quote
        elif letter in "'\"" and not parts[-1].strip():
            quote = letter  # elsewhere it is an apostrophe
        elif letter in _BRACKETS:
            open_brackets.append(_BRACKETS[letter])
        elif open_brackets and letter == open_brackets[-1]:
            open_brackets.pop()
        elif letter == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += letter
    return parts
