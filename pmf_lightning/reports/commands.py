"""Run the report command and yield its output lines."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmf_lightning.reports.committed import README, is_kept, keep_runs, write_index
from pmf_lightning.reports.sweeps import read_sweeps
from pmf_lightning.reports.writing import WrittenReport, write_report
from pmf_lightning.utils.errors import UserError

CLOSING = (
    "Made of what [runs](runs) keeps by `python -m pmf_lightning.report .`, called in this folder; "
    "[results.csv](results.csv) has a row per run."
)


def work(folders: Sequence[Path], out: Path | None, keep: Path | None, index: Path | None) -> Iterator[str]:
    """Run the report command and yield its output lines. Raises UserError."""
    if keep is not None:
        yield from _said(_kept(folders, keep))
    elif len(folders) == 1 and out is None and is_kept(folders[0]):
        yield from _said(write_kept(folders[0]))
    elif folders:
        yield from _said(write_report(read_sweeps(folders), out or folders[0]))
    if index is not None:
        path, number = write_index(index)
        yield f"written: {path}, {number} kept sweeps"


def write_kept(folder: Path) -> WrittenReport:
    """Write README.md, results.csv and plots of a sweep saved with --keep, from its saved files. Raises UserError."""
    return write_report(read_sweeps([folder]), folder, README, page=False, closing=CLOSING)


def _kept(folders: Sequence[Path], keep: Path) -> WrittenReport:
    sweeps = read_sweeps(folders)
    if len(sweeps) != 1:
        names = ", ".join(
            sweep.name if sweep.study is None else f"{sweep.name} ({sweep.study.scale})" for sweep in sweeps
        )
        raise UserError(f"--keep {keep}: it takes one sweep, and here are {names}; name the folder of one")
    keep_runs(sweeps[0], keep)
    return write_kept(keep)


def _said(written: WrittenReport) -> Iterator[str]:
    """Yield lines with the verdicts and the paths."""
    for section in written.sections:
        yield section.title
        yield f"  {section.answer}. {section.verdict.words}"
        yield from (f"  {mark:4} {says}" for mark, says, _ in section.claims)
        yield from (f"  {line}" for line in section.troubles)
    yield "written: " + ", ".join(str(path) for path in written.files)
