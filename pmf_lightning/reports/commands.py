"""Run the report command and yield its output lines."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmf_lightning.reports.committed import README, is_generated, save_runs, write_index
from pmf_lightning.reports.runs_file import RUNS
from pmf_lightning.reports.sweeps import read_sweeps
from pmf_lightning.reports.writing import WrittenReport, write_report
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

CLOSING = (
    "Written from [runs.json](runs.json) by `python -m pmf_lightning.report .` in this folder; "
    "[results.csv](results.csv) has a row per run."
)


def work(folders: Sequence[Path], out: Path | None, save: Path | None, index: Path | None) -> Iterator[str]:
    """Run the report command and yield its output lines. Raises UserError."""
    if save is not None:
        yield from _lines(_save(folders, save))
    elif len(folders) == 1 and out is None and (folders[0] / RUNS).is_file() and is_generated(folders[0] / README):
        yield from _lines(write_page(folders[0]))
    elif folders:
        yield from _lines(write_report(read_sweeps(folders), out or folders[0]))
    if index is not None:
        path, number = write_index(index)
        yield f"written: {path}, {counted(number, 'study', 'studies')}"


def write_page(folder: Path) -> WrittenReport:
    """Write README.md, results.csv and plots of a sweep from its runs.json. Raises UserError."""
    return write_report(read_sweeps([folder]), folder, README, page=False, closing=CLOSING)


def _save(folders: Sequence[Path], save: Path) -> WrittenReport:
    sweeps = read_sweeps(folders)
    if len(sweeps) != 1:
        names = ", ".join(
            sweep.name if sweep.study is None else f"{sweep.name} ({sweep.study.scale})" for sweep in sweeps
        )
        raise UserError(f"--save {save}: it takes one sweep, these are {names}; name the folder of one")
    save_runs(sweeps[0], save)
    return write_page(save)


def _lines(written: WrittenReport) -> Iterator[str]:
    """Yield lines with the verdicts and the paths."""
    for section in written.sections:
        yield section.title
        yield f"  {section.answer}. {section.verdict.words}"
        yield from (f"  {mark:4} {says}" for mark, says, _ in section.claims)
        yield from (f"  {line}" for line in section.troubles)
    yield "written: " + ", ".join(str(path) for path in written.files)
