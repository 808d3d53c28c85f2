"""Format a report as Markdown."""

import re
from collections.abc import Sequence

from pmf_lightning.reports.section import IndexRow, SweepPage
from pmf_lightning.reports.table import Table

MARK = "<!-- written by python -m pmf_lightning.report, which overwrites changes made by hand -->"


def to_markdown(sections: Sequence[SweepPage], heading: str, closing: str = "") -> str:
    """Return the text of report.md: a comparison if there are several sweeps, then a section for each."""
    if len(sections) == 1:
        blocks = [f"# {plain(sections[0].title)}", *_body(sections[0])]
    else:
        blocks = [f"# {plain(heading)}", headlines([section.headline for section in sections])]
        for section in sections:
            blocks += [f"## {plain(section.title)}", *_body(section)]
    blocks += [closing] if closing else []
    return "\n\n".join([MARK, *blocks]) + "\n"


def headlines(lines: Sequence[IndexRow], links: Sequence[str] = ()) -> str:
    """Return a table with a row per sweep; ``links`` are the folders that the findings link to."""
    rows = []
    for number, line in enumerate(lines):
        finding = plain(line.finding) + (f" ({plain(line.source)})" if line.source else "")
        cells = [line.paper, line.ours, line.answer, line.seeds, line.cost]
        rows.append([f"[{finding}]({links[number]})" if links else finding, *map(plain, cells)])
    return grid(["finding", "paper", "ours", "reproduced", "seeds", "cost"], rows)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are already Markdown."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def plain(text: str) -> str:
    """Escape text for Markdown."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", text)


def _body(section: SweepPage) -> list[str]:
    blocks = []
    if section.source:
        blocks.append(f"[{plain(section.source)}]({section.link})" if section.link else plain(section.source))
    blocks.append(f"**{plain(section.answer)}.** {plain(section.verdict.words)}")
    if section.claims:
        blocks.append(
            "\n".join(f"- **{mark}**: {plain(says)}. {plain(_capital(found))}." for mark, says, found in section.claims)
        )
    blocks.append(_table(section.table))
    if section.troubles:
        blocks.append("Without a result:\n\n" + "\n".join(f"- {plain(line)}" for line in section.troubles))
    blocks += [plain(note) for note in section.notes]
    blocks += [f"![{plain(picture.title)}]({picture.file})" for picture in section.pictures]
    if section.commands:
        blocks.append("```bash\n" + "\n".join(section.commands) + "\n```")
    if section.facts:
        blocks.append("\n".join(f"- {name}: {plain(value)}" for name, value in section.facts))
    return blocks


def _table(table: Table) -> str:
    rows = [
        [f"**{plain(cell)}**" if number == row.best else plain(cell) for number, cell in enumerate(row.cells)]
        for row in table.rows
    ]
    return grid([plain(name) for name in table.header], rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
