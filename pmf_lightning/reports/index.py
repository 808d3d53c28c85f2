"""The table of kept sweeps in experiments/README.md."""

import re
from pathlib import Path

from pmf_lightning.cache import atomic_write
from pmf_lightning.errors import UserError
from pmf_lightning.reports.keeping import README, is_kept
from pmf_lightning.reports.markdown import headlines
from pmf_lightning.reports.section import section_of
from pmf_lightning.reports.sweeps import read_sweeps

MARK = re.compile(r"<!-- /?studies -->")


def write_index(folder: Path) -> tuple[Path, int]:
    """Rewrite what stands between the two marks of ``folder``/README.md; return its path and the number of sweeps.

    Raises UserError where there is no such file, or not two marks in it.
    """
    path = folder / README
    if not path.is_file():
        raise UserError(f"--index {folder}: it has no {README}; write one with <!-- studies --> and <!-- /studies -->")
    text = path.read_text()
    marks = list(MARK.finditer(text))
    if len(marks) != 2:
        raise UserError(
            f"--index {folder}: {README} has {len(marks)} marks; put <!-- studies --> before the table and "
            "<!-- /studies --> after it, each once"
        )
    kept = sorted(place for place in folder.iterdir() if place.is_dir() and is_kept(place))
    lines = [section_of(sweep).headline for place in kept for sweep in read_sweeps([place])]
    table = headlines(lines, [place.name for place in kept]) if lines else "Nothing is kept yet."
    with atomic_write(path) as draft:
        draft.write_text(f"{text[: marks[0].end()]}\n\n{table}\n\n{text[marks[1].start() :]}", newline="\n")
    return path, len(lines)
