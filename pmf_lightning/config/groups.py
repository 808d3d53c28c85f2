"""Config groups of conf/ and of the user's folders: names, choices, and the meaning of ``group=null``."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap

import yaml

from pmf_lightning.config.search_path import CONF, folders
from pmf_lightning.utils.errors import UserError, suggestions

COMMANDS = "commands"  # folder of conf/ with the files of commands, which are no choices of a group
NONE = {"logger": "files"}  # the choice for group=null, if it is not called none; log files are always written


def groups() -> frozenset[str]:
    """Return the names of all groups."""
    return _groups(folders())


@cache
def _groups(searched: tuple[Path, ...]) -> frozenset[str]:
    return frozenset(path.name for folder in searched for path in folder.iterdir() if path.is_dir()) - {COMMANDS}


def command_file(command: str) -> str:
    """Return the file of a command, relative to conf/ and without .yaml, as Hydra takes it."""
    return command if (CONF / f"{command}.yaml").is_file() else f"{COMMANDS}/{command}"


def choices(group: str) -> list[str]:
    """Return the valid names for ``group=``."""
    places = [folder / group for folder in folders()]
    return sorted({path.relative_to(at).with_suffix("").as_posix() for at in places for path in at.rglob("*.yaml")})


def listing() -> str:
    """Return the groups and their choices for --help, one group a line; an experiment is listed without its scales."""
    lines = []
    for group in sorted(groups()):
        names = sorted({name.partition("/")[0] for name in choices(group)})
        lines += wrap(f"{group}: {', '.join(names)}", width=120, subsequent_indent="  ")
    return "\n".join(lines)


def file_of(group: str, name: str) -> Path:
    """Return the file of a choice: the one in the first folder that has it."""
    return next(file for folder in folders() if (file := folder / group / f"{name}.yaml").is_file())


def is_group(key: str) -> bool:
    """Whether the key of an override is a group (otherwise it is an option)."""
    return key in groups() or "/" in key or "@" in key


def check_choices(overrides: Sequence[str]) -> None:
    """Raise UserError, with similar names, if an override chooses a file that is in no folder."""
    for group, names in _picked(overrides):
        if group in groups():
            for name in names:
                if name not in (known := choices(group)):
                    net, _, size = name.partition("_")
                    if group == "backbone" and net in known and size:  # as before the sizes were rows of one file
                        raise UserError(
                            f"{group}={name}: sizes are rows of one file; {group}={net} {group}.size={size}"
                        )
                    raise UserError(f"{group}={name}: there is no such {group}; {suggestions(name, known)}")


def _picked(overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (key, list of comma-separated values, also in brackets) of plain overrides."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and not key.startswith("~") and "(" not in value:
            yield key.lstrip("+"), [name.strip().strip("[]'\" ") for name in value.split(",")]


def without_null(overrides: Sequence[str], command: str) -> list[str]:
    """Replace ``group=null`` and ``~group`` by the group's choice for none; UserError if it has none."""
    return [new for override in overrides if (new := _without_null(override, command)) is not None]


def _without_null(override: str, command: str) -> str | None:
    """Return the replaced override, None if it states the default."""
    key, _, value = override.partition("=")
    group = key.lstrip("+~")
    if "/" in group and value == "null":
        raise UserError(f"{override}: a group of Hydra needs a choice; leave it out for the default")
    if group not in groups():
        return override
    if key.startswith("~"):
        value = "null"
    names = value.split(",")
    if "null" not in names:
        return override
    if names == ["null"] and _default(command, group) == "null":
        return None
    nothing = "none" if "none" in choices(group) else NONE.get(group)
    if nothing is None:
        shown = override if key.startswith("~") else f"{group}=null"
        known = choices(group)
        usual = default if (default := _default(command, group)) in known else known[0]
        listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise UserError(f"{shown}: one {group} is needed; choose one, such as {group}={usual} (known: {listed})")
    return f"{group}={','.join(nothing if name == 'null' else name for name in names)}"


@cache
def _default(command: str, group: str) -> str | None:
    """Return the default choice of a group in a command's file: a name, "null", or None if it is not listed."""
    contents = yaml.safe_load((CONF / f"{command_file(command)}.yaml").read_text())
    if group in contents and contents[group] is None:
        return "null"  # an option that the group's files set
    for entry in contents.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            if (found := _default(entry.lstrip("/"), group)) is not None:
                return found
        elif isinstance(entry, dict):
            for name, chosen in entry.items():
                if name.removeprefix("optional ").lstrip("/") == group:
                    return "null" if chosen is None else str(chosen)
    return None
