"""Pages of the configuration reference, made from the files of conf/: every key with its default and its comment."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

LONGEST = 120  # characters of a value in a table
COMMANDS = "commands"  # folder of conf/ with the files of commands


@dataclass(frozen=True)
class Row:
    """A key (dotted), its value as it is written, "" for the head of a section, and its comment."""

    key: str
    value: str
    comment: str


def head_of(text: str) -> str:
    """Return the comment at the top of a file, as one paragraph."""
    lines = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def rows_of(text: str) -> list[Row]:
    """Return the keys of a file of conf/ in their order; of Hydra's own only those of launchers and sweepers."""
    node = yaml.compose(text)
    return list(_rows(node, "", text.splitlines())) if isinstance(node, yaml.MappingNode) else []


def _rows(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Row]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name == "defaults" or (prefix == "hydra." and key.value not in ("launcher", "sweeper")):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            if comment := _comment(key.end_mark, key.start_mark, lines):
                yield Row(name, "", comment)
            yield from _rows(value, f"{name}.", lines)
        else:
            yield Row(name, _source(value, lines), _comment(value.end_mark, key.start_mark, lines))


def _source(node: yaml.Node, lines: list[str]) -> str:
    start, end = node.start_mark, node.end_mark
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return "..."
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip()
    text = (
        [lines[start.line][start.column :], *lines[start.line + 1 : end.line], lines[end.line][: end.column]]
        if (end.line < len(lines))
        else lines[start.line :]
    )
    return " ".join(part.split(" #")[0].strip() for part in text)


def _comment(end: yaml.Mark, start: yaml.Mark, lines: list[str]) -> str:
    """Return the comment behind a value and its continuation lines, or else the comment lines directly above."""
    line = lines[end.line] if end.line < len(lines) else ""
    _, mark, first = line[end.column :].partition("#")
    if mark:
        column = line.index("#", end.column)
        found = [first.strip()]
        for below in lines[end.line + 1 :]:
            if below.strip().startswith("#") and below.index("#") >= column - 1 and column > start.column + 1:
                found.append(below.strip().lstrip("# "))
            else:
                break
        return " ".join(found)
    above = []
    for line in reversed(lines[: start.line]):
        if not line.strip().startswith("#") or line.index("#") != start.column or not start.column:
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(text: str) -> str:
    """Return the keys of a file as a Markdown table."""
    shown = [row for row in rows_of(text) if not _is_class(row)]
    rows = [f"| `{row.key}` | {_code(_shortened(row.value))} | {_cell(row.comment)} |" for row in shown]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else ""


def _is_class(row: Row) -> bool:
    return row.key.endswith("_target_")


def _shortened(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]} ..."


def classes_of(text: str) -> str:
    """Return the classes and functions that a file names, as a sentence."""
    named = [
        f"`{row.key.removesuffix('_target_').rstrip('.')}`: `{row.value}`" for row in rows_of(text) if _is_class(row)
    ]
    return f"Class: {', '.join(one.removeprefix('``: ') for one in named)}." if named else ""


def bases_of(text: str) -> list[str]:
    """Return the entries of the defaults list as group=choice; entries that choose nothing are left out."""
    entries = (yaml.safe_load(text) or {}).get("defaults", [])
    named = [entry if isinstance(entry, str) else "=".join(map(str, next(iter(entry.items())))) for entry in entries]
    hidden = ("_self_", "optional ", "override hydra/", "override /hydra/")
    return [
        one.removesuffix("=None").removeprefix("override ").lstrip("/") for one in named if not one.startswith(hidden)
    ]


def _section(title: str, text: str) -> str:
    parts = [f"## `{title}`", _cell(head_of(text))]
    if bases := bases_of(text):
        parts.append("Starts from " + ", ".join(f"`{base}`" for base in bases) + ".")
    return "\n\n".join(part for part in [*parts, classes_of(text), table(text)] if part) + "\n"


def groups_of(conf: Path) -> dict[str, list[Path]]:
    """Return group -> files: the folders of conf/, nested ones by their path."""
    found: dict[str, list[Path]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group = path.relative_to(conf).parent.as_posix()
        if group not in (".", COMMANDS):
            found.setdefault(group, []).append(path)
    return found


def pages(root: Path) -> dict[str, str]:
    """Return path -> text: the overview, one page for each group, and one for the commands."""
    conf = root / "conf"
    groups = groups_of(conf)
    written = {"configuration/index.md": _overview(conf, groups)}
    order = [conf / "train.yaml", *sorted((conf / COMMANDS).glob("*.yaml")), conf / "run.yaml"]
    sections = [_section(path.stem, path.read_text()) for path in order]
    written["configuration/commands.md"] = "# Options of the commands\n\n" + "\n".join(sections)
    for group in sorted({group.split("/")[0] for group in groups}):
        sections = [_section(_choice(conf / group, path), path.read_text()) for path in _files(groups, group)]
        written[f"configuration/{group}.md"] = f"# `{group}=`\n\n" + "\n".join(sections)
    return written


def _files(groups: dict[str, list[Path]], group: str) -> list[Path]:
    return [path for name, paths in groups.items() if name == group or name.startswith(f"{group}/") for path in paths]


def _choice(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _overview(conf: Path, groups: dict[str, list[Path]]) -> str:
    rows = []
    for group in sorted({group.split("/")[0] for group in groups}):
        names = sorted({_choice(conf / group, path).split("/")[0] for path in _files(groups, group)})
        rows.append(f"| [`{group}=`]({group}.md) | {' '.join(f'`{name}`' for name in names)} |")
    return OVERVIEW + "\n".join(["| group | choices |", "|---|---|", *rows]) + "\n"


OVERVIEW = """# Configuration

These pages are made from the files in `conf/`: each group, its choices, and each key with its default and its comment.

A command composes its configuration from these files: `group=choice` picks a file, `key=value` sets a key, and a
dotted key reaches inside (`optimizer.lr=1e-3`). Later arguments win. `--help` prints the choices and all values of a
command line, `--cfg job` only the values. Unknown keys and values of the wrong kind are refused before any work.
[Options of the commands](commands.md) are the keys outside the groups.

"""
