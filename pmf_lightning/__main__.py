"""The program pmf: ``pmf train model=pmf_b16`` runs ``python -m pmf_lightning.train model=pmf_b16``."""

import ast
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pmf_lightning
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.terminal import be_brief, plain_ending

# In the order of --help.
COMMANDS = (
    *("train", "sample", "play", "evaluate", "search_guidance", "make_stats", "shard", "convert"),
    *("info", "report", "toy", "benchmark", "dashboard"),
)
_COMPLETION = "completion"
_HELP, _VERSION = ("--help", "-h"), ("--version", "-V")


def main() -> None:
    """Run the command that the first argument names; exits with 2 if there is no such command."""
    be_brief()
    arguments = sys.argv[1:]
    name = arguments[0].replace("-", "_") if arguments and not arguments[0].startswith("-") else ""
    if name in COMMANDS:
        _run(name, arguments[1:])
        return
    with plain_ending():
        try:
            print(_reply(arguments))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _run(name: str, arguments: Sequence[str]) -> None:
    """Run a command as ``python -m`` does: as the main module, with the working directory on the import path."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.argv[1:] = arguments
    runpy.run_module(f"{pmf_lightning.__name__}.{name}", run_name="__main__", alter_sys=True)


def _reply(arguments: Sequence[str]) -> str:
    """Return what pmf itself prints: its help, the version, or a script of tab completion. Raises UserError."""
    first = arguments[0] if arguments else _HELP[0]
    if first in _HELP:
        return _help()
    if first in _VERSION:
        return f"pmf_lightning {pmf_lightning.__version__}"
    if first != _COMPLETION:
        raise UserError(f"pmf {first}: there is no such command; {suggestions(first, [*COMMANDS, _COMPLETION])}")
    from pmf_lightning.config import completion  # imports Hydra

    return completion.reply(arguments[1:], [*COMMANDS, _COMPLETION])


def _help() -> str:
    """Return the list of commands, each with the first line of its module's docstring."""
    folder = Path(__file__).parent
    width = max(map(len, (*COMMANDS, _COMPLETION)))
    lines = [f"  {name:{width}}  {_summary(folder / f'{name}.py')}" for name in COMMANDS]
    return "\n".join(
        [
            "Train, ablate and evaluate one-step, latent-free image generators.",
            "",
            "usage: pmf COMMAND [options]      the same as python -m pmf_lightning.COMMAND [options]",
            "",
            *lines,
            f"  {_COMPLETION:{width}}  Print the tab completion of a shell: pmf completion bash|zsh|fish",
            "",
            "pmf COMMAND --help lists the options of a command; pmf --version prints the version.",
        ]
    )


def _summary(file: Path) -> str:
    """Return the first line of a module's docstring without its example; the module is not imported."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return docstring.partition("\n")[0].partition(": python -m")[0]


if __name__ == "__main__":
    main()
