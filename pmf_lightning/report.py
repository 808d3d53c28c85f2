"""Write a report of runs: python -m pmf_lightning.report runs/pmf_table2/small"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pmf_lightning.reports.committed import README, is_kept, keep_runs, write_index
from pmf_lightning.reports.sweeps import read_sweeps
from pmf_lightning.reports.writing import WrittenReport, write_report
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.terminal import plain_ending

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


EXAMPLES = """examples:
  python -m pmf_lightning.report runs/pmf_table2/small                 # report.md and report.html there
  python -m pmf_lightning.report runs/pmf_table2 runs/jit_table2       # a section each, a comparison on top
  python -m pmf_lightning.report runs/my_sweep --out /tmp/page         # any multirun: arms are what differs
  python -m pmf_lightning.report runs/pmf_table2/small --keep experiments/pmf_table2
  python -m pmf_lightning.report experiments/pmf_table2                # its README.md again, from what was kept
  python -m pmf_lightning.report --index experiments                   # the table of experiments/README.md
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run it and print its output; exits with 2 on bad input."""
    with plain_ending():
        _work(arguments)


def _work(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    if not options.folders and not options.index:
        _parser().error("name folders of runs, or --index experiments")
    if options.keep and options.out:
        _parser().error("--keep writes to its own folder; leave --out away")
    pass  # matplotlib: not needed for --help

    try:
        for line in work(options.folders, options.out, options.keep, options.index):
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _dir(text: str) -> Path:
    """Return an argument as a path; an empty one is an error, since Path("") would be this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty (a shell variable that is not set leaves it so)")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pmf_lightning.report",
        description="Turn runs into a page: table, verdict, curves and samples of every study or sweep below DIR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="*", type=_dir, help="with runs below it, or a sweep.json")
    parser.add_argument("--out", type=_dir, metavar="DIR", help="where to write; else the first DIR")
    parser.add_argument("--keep", type=_dir, metavar="DIR", help="copy what the page needs and write README.md")
    parser.add_argument("--index", type=_dir, metavar="DIR", help="rewrite the table of studies in DIR/README.md")
    return parser


if __name__ == "__main__":
    main()
