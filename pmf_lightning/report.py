"""Write a report of runs: python -m pmf_lightning.report runs/pmf_table2/small"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.terminal import plain_ending

EXAMPLES = """examples:
  python -m pmf_lightning.report runs/pmf_table2/small                 # report.md and report.html there
  python -m pmf_lightning.report runs/pmf_table2 runs/jit_table2       # a section each, and a table that compares them
  python -m pmf_lightning.report runs/my_sweep --out /tmp/page         # any multirun: an arm for each setting
  python -m pmf_lightning.report runs/pmf_table2/small --save experiments/pmf_table2
  python -m pmf_lightning.report experiments/pmf_table2                # its README.md again, from its runs.json
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
    if options.save and options.out:
        _parser().error("--save writes to its own folder; remove --out")
    from pmf_lightning.reports import commands  # matplotlib: not needed for --help

    try:
        for line in commands.work(options.folders, options.out, options.save, options.index):
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _dir(text: str) -> Path:
    """Return an argument as a path; an empty one is an error, since Path("") would be this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty (is a shell variable not set?)")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pmf_lightning.report",
        description="Turn runs into a page: table, verdict, curves and samples of every study or sweep below DIR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", type=_dir, help="folder with runs below it, or with runs.json"
    )
    parser.add_argument("--out", type=_dir, metavar="DIR", help="where to write; else the first DIR")
    parser.add_argument("--save", type=_dir, metavar="DIR", help="write runs.json and README.md there")
    parser.add_argument("--index", type=_dir, metavar="DIR", help="rewrite the table of studies in DIR/README.md")
    return parser


if __name__ == "__main__":
    main()
