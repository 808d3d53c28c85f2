"""A W&B workspace as plain data: sections of panels from conf/commands/dashboard.yaml, checked, and printed as text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pmf_lightning.utils.errors import UserError, suggestions

TIME = "time"  # as an axis: seconds since the run began, logged by W&B

CONFIG = "config:"  # prefix of a number from the configuration


@dataclass(frozen=True)
class Lines:
    """Curves of the metrics ``keys``, or of all that match the regular expression ``match``, over the metric ``x``."""

    title: str
    keys: tuple[str, ...] = ()
    match: str | None = None
    x: str = "images"
    log: bool = False


@dataclass(frozen=True)
class Pictures:
    """The images logged as ``keys``: a row per run, a column per step."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """The last values of the metrics ``keys``, a bar per run or arm."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Coordinates:
    """Runs as lines through parallel axes: last values of metrics, or numbers of the configuration ("config:...")."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A text in Markdown."""

    text: str


Panel = Lines | Pictures | Bars | Coordinates | Note

KINDS: dict[str, type] = {
    "lines": Lines,
    "pictures": Pictures,
    "bars": Bars,
    "coordinates": Coordinates,
    "note": Note,
}


@dataclass(frozen=True)
class Section:
    """A named group of panels; ``open`` says whether it is expanded initially."""

    name: str
    panels: tuple[Panel, ...]
    open: bool = False


@dataclass(frozen=True)
class Layout:
    """A workspace: ``name``, ``entity`` and ``project``, the ``group`` of runs it shows (None: all), and sections."""

    name: str
    entity: str | None
    project: str
    group: str | None
    sections: tuple[Section, ...]


def read_layout(options: Mapping[str, Any]) -> Layout:
    """Return the layout of ``options``, conf/commands/dashboard.yaml as plain data; raises UserError."""
    group = options["group"]
    name = options["name"] or f"pmf_lightning: {group or 'all runs'}"
    sections = tuple(_section(entry) for entry in options["sections"])
    return Layout(name, options["entity"], options["project"], group, sections)


def _section(entry: Mapping[str, Any]) -> Section:
    if missing := {"name", "panels"} - entry.keys():
        raise UserError(f"sections: {dict(entry)}: a section has a name and panels; add {', '.join(sorted(missing))}")
    name = entry["name"]
    return Section(name, tuple(_panel(panel, name) for panel in entry["panels"]), entry.get("open", False))


def _panel(entry: Mapping[str, Any], section: str) -> Panel:
    """Return the panel of {kind: {field: value}}."""
    if len(entry) != 1:
        raise UserError(f"sections: {section}: {dict(entry)}: a panel is one of {', '.join(KINDS)} and its options")
    ((kind, given),) = entry.items()
    place = f"sections: {section}: {kind}"
    if kind not in KINDS:
        raise UserError(f"{place}: there is no such panel; {suggestions(kind, KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]
    if wrong := sorted(given.keys() - set(known)):
        raise UserError(f"{place}: {wrong[0]}: there is no such option; {suggestions(wrong[0], known)}")
    try:
        panel = KINDS[kind](
            **{name: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for name, v in given.items()}
        )
    except TypeError as error:
        raise UserError(f"{place}: {error}") from error
    _check_lines(panel, place)
    return panel


def _check_lines(panel: Panel, place: str) -> None:
    if not isinstance(panel, Lines):
        return
    if bool(panel.keys) == bool(panel.match):
        raise UserError(f"{place}: {panel.title}: give keys, or match, a regular expression")
    try:
        re.compile(panel.match or "")
    except re.error as error:
        raise UserError(f"{place}: match={panel.match}: not a regular expression ({error})") from error


WIDTH = 110


def tree(layout: Layout) -> str:
    """Format sections and panels as an indented list, with the metrics of each panel."""
    place = f"{layout.entity or '<entity>'}/{layout.project}"
    runs = f"runs of the group {layout.group}" if layout.group else "all runs"
    lines = [f"{layout.name} ({place}): {runs}, by group and arm"]
    for section in layout.sections:
        lines.append(f"  {section.name}{' (open)' if section.open else ''}")
        lines += [f"    {_panel_text(panel)}" for panel in section.panels]
    return "\n".join(lines)


def _panel_text(panel: Panel) -> str:
    kind = type(panel).__name__.lower()
    if isinstance(panel, Note):
        text = " ".join(panel.text.split())
        return f"{kind:<12} {text if len(text) <= WIDTH else text[: WIDTH - 3] + '...'}"
    shown = ", ".join(panel.keys)
    if isinstance(panel, Lines):
        shown = f"{shown or f'all that match {panel.match}'} against {panel.x}{', logarithmic' if panel.log else ''}"
    return f"{kind:<12} {panel.title}: {shown}"
