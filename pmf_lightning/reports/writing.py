"""Write a report: markdown, a self-contained HTML page, a table of runs, and pictures."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pmf_lightning.reports.formatting import slugs
from pmf_lightning.reports.markdown import to_markdown
from pmf_lightning.reports.plots import save_curves, save_measure, save_strips
from pmf_lightning.reports.section import Picture, SweepPage, section_of
from pmf_lightning.reports.sweeps import Sweep
from pmf_lightning.reports.table import runs_table
from pmf_lightning.utils.cache import atomic_write, writable


def to_html(sections: Sequence[SweepPage], heading: str, folder: Path) -> str:
    """Return the text of report.html; ``folder`` contains the sections' pictures."""
    names = [picture.file for section in sections for picture in section.pictures]
    files = {name: f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}" for name in names}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    title = sections[0].title if len(sections) == 1 else heading
    return environment.get_template("page.html").render(sections=sections, heading=title, data=files)


# file -> (function that draws it, its title, its kind)
PICTURES = {
    "measure.png": (save_measure, "{measure} of each arm{paper}", "drawn"),
    "curves.png": (save_curves, "curves over images seen, one line per run", "drawn"),
    "samples.png": (save_strips, "samples of each arm, with the same noise at each position", "pixels"),
}


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk: its sections, and its files, the most important first."""

    sections: Sequence[SweepPage]
    files: Sequence[Path]


def write_report(
    sweeps: Sequence[Sweep], out: Path, text: str = "report.md", page: bool = True, closing: str = ""
) -> WrittenReport:
    """Write the report of ``sweeps`` to ``out``; ``text`` names the Markdown file, ``closing`` is its last line."""
    writable(out, "--out")
    sections = [section_of(sweep) for sweep in sweeps]
    starts = [f"{name}-" for name in slugs([section.name for section in sections])] if len(sweeps) > 1 else [""]
    for section, sweep, start in zip(sections, sweeps, starts, strict=True):
        _draw(section, sweep, out, start)
    heading = f"{len(sweeps)} sweeps"
    files = [_write(out / text, to_markdown(sections, heading, closing))]
    if page:
        files.append(_write(out / "report.html", to_html(sections, heading, out)))
    files.append(_write(out / "results.csv", to_csv(sweeps)))
    return WrittenReport(
        sections, [*files, *(out / picture.file for section in sections for picture in section.pictures)]
    )


def to_csv(sweeps: Sequence[Sweep]) -> str:
    """Return the text of results.csv: a row per run, with the columns of all sweeps."""
    tables = [runs_table(sweep) for sweep in sweeps]
    header = list(dict.fromkeys(name for names, _ in tables for name in names))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(zip(names, row, strict=True)) for names, rows in tables for row in rows)
    return stream.getvalue()


def _draw(section: SweepPage, sweep: Sweep, out: Path, start: str) -> None:
    """Draw the pictures of a sweep, with ``start`` as prefix of their names, and add them to its section."""
    for name, (save, title, kind) in PICTURES.items():
        file = f"{start}{name}"
        if save(sweep, out / file):
            words = title.format(measure=sweep.measure, paper=", ours and the paper's" if sweep.study else "")
            section.pictures.append(Picture(words, file, kind))
        else:
            (out / file).unlink(missing_ok=True)  # left by an earlier report


def _write(path: Path, content: str) -> Path:
    with atomic_write(path) as draft:
        draft.write_text(content, encoding="utf-8", newline="\n")
    return path
