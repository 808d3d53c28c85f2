"""A report as one HTML page that needs nothing else: style inside, pictures inside, no script."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pmf_lightning.reports.section import Section


def to_html(sections: Sequence[Section], heading: str, folder: Path) -> str:
    """Return the text of report.html; ``folder`` holds the sections' pictures."""
    files = {picture.file: _data(folder / picture.file) for section in sections for picture in section.pictures}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    title = sections[0].title if len(sections) == 1 else heading
    return environment.get_template("page.html").render(sections=sections, heading=title, data=files)


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
