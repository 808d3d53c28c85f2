"""Run a toy experiment that shows one idea: python -m pmf_lightning.toy experiment=manifold"""

import sys
from pathlib import Path
from pkgutil import resolve_name

from omegaconf import DictConfig

from pmf_lightning.cli import command, with_one_line_errors
from pmf_lightning.config.compose import choices
from pmf_lightning.utils.errors import UserError, suggestions

# name of a file in conf/toys -> the function that it configures, which returns the paths that it wrote. It is imported
# when it runs: it needs PyTorch, --help does not.
TOYS = {
    "manifold": "pmf_lightning.toys.manifold:manifold",
    "manifold_jit": "pmf_lightning.toys.manifold:manifold",
    "fields": "pmf_lightning.toys.fields:fields",
    "drift2d": "pmf_lightning.toys.drift2d:drift2d",
    "spiral": "pmf_lightning.toys.spiral:spiral",
}
GROUP = "toys"  # conf/experiment belongs to the train command


def toy(cfg: DictConfig) -> dict[str, Path]:
    """Run the experiment that ``cfg`` (conf/commands/toy.yaml) describes; return the paths that it wrote."""
    return resolve_name(TOYS[cfg.experiment])(cfg)


@command("toy", models=("ckpt",))
def _main(cfg: DictConfig) -> None:
    paths = toy(cfg)
    if "table.md" in paths:
        print(paths["table.md"].read_text(), end="")
    print("written: " + ", ".join(str(path) for path in paths.values()))


def main() -> None:
    """Run the experiment of the command line and print its paths; ``experiment=`` chooses a file of conf/toys."""
    with_one_line_errors(lambda: _check_names(sys.argv[1:]))
    sys.argv[1:] = [_as_group(argument) for argument in sys.argv[1:]]
    _main()


def _check_names(arguments: list[str]) -> None:
    for argument in arguments:
        key, _, names = argument.partition("=")
        for name in names.split(",") if key == "experiment" else ():
            if name not in (known := choices(GROUP)):
                raise UserError(f"experiment={name}: there is no such experiment; {suggestions(name, known)}")


def _as_group(argument: str) -> str:
    return f"{GROUP}={argument.removeprefix('experiment=')}" if argument.startswith("experiment=") else argument


if __name__ == "__main__":
    main()
