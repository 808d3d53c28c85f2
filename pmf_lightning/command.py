"""What all commands share: Hydra underneath, bad input as one line instead of a traceback."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config import CONF, check_choices, compose, one_line, scaled
from pmf_lightning.errors import Diverged, NotSaved, ProcessLost, UserError

# With these flags Hydra does something else than to run one job.
_OTHER = {
    "--help",
    "-h",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--multirun",
    "-m",
    "--shell-completion",
    "-sc",
}
_CODES = {Diverged: 3, NotSaved: 4, ProcessLost: 5}


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn a function of a configuration into a command-line program: ``main()`` exits with 2 on bad input."""

    def wrap(job: Callable[[DictConfig], None]) -> Callable[[], None]:
        @wraps(job)
        def reporting(cfg: DictConfig) -> None:
            with_one_line_errors(lambda: job(cfg))

        run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(reporting)

        def main() -> None:
            with_one_line_errors(lambda: _check_arguments(config_name))
            run()

        return main

    return wrap


def _check_arguments(config_name: str) -> None:
    """Compose once before Hydra does, whose own errors span many lines."""
    sys.argv[1:] = arguments = scaled(sys.argv[1:])
    _check_launcher(arguments)
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if _OTHER.isdisjoint(arguments):
        compose([a for a in arguments if not a.startswith("-")], config_name)
    else:
        check_choices(overrides)


def _check_launcher(arguments: Sequence[str]) -> None:
    """Raise UserError where a run cannot go to the cluster that it is meant for."""
    if "launcher=slurm" not in arguments:
        return
    if {"-m", "--multirun"}.isdisjoint(arguments):
        raise UserError("launcher=slurm: Hydra hands multiruns alone to a launcher; add -m")
    try:
        import_module("hydra_plugins.hydra_submitit_launcher")
    except ImportError as error:
        raise UserError("launcher=slurm: it needs a plugin of Hydra; pip install 'pmf_lightning[slurm]'") from error


def with_one_line_errors(work: Callable[[], None]) -> None:
    """Run ``work``; print bad input as one line and exit with 2, or with the code of its kind (errors.py)."""
    try:
        work()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(_CODES.get(type(error), 2))
