"""Write a report of runs: python -m pmf_lightning.report runs/pmf_table2/small"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.terminal import plain_ending

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
    from pmf_lightning.reports import commands  # matplotlib: not needed for --help

    try:
        for line in commands.work(options.folders, options.out, options.keep, options.index):
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
