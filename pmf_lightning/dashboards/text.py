"""A workspace in words: what the command prints before it makes one."""

from pmf_lightning.dashboards.layout import Layout, Lines, Note, Panel

WIDTH = 110


def tree(layout: Layout) -> str:
    """Return sections and panels as an indented list, with the metrics that each panel shows."""
    place = f"{layout.entity or '<entity>'}/{layout.project}"
    runs = f"runs of the group {layout.group}" if layout.group else "all runs"
    lines = [f"{layout.name} ({place}): {runs}, by group and arm"]
    for section in layout.sections:
        lines.append(f"  {section.name}{' (open)' if section.open else ''}")
        lines += [f"    {_panel(panel)}" for panel in section.panels]
    return "\n".join(lines)


def _panel(panel: Panel) -> str:
    kind = type(panel).__name__.lower()
    if isinstance(panel, Note):
        text = " ".join(panel.text.split())
        return f"{kind:<12} {text if len(text) <= WIDTH else text[: WIDTH - 3] + '...'}"
    shown = ", ".join(panel.keys)
    if isinstance(panel, Lines):
        shown = f"{shown or f'all that match {panel.match}'} against {panel.x}{', logarithmic' if panel.log else ''}"
    return f"{kind:<12} {panel.title}: {shown}"
