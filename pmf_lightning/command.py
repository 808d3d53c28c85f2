"""What all commands share: Hydra underneath, bad input as one line instead of a traceback."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

import hydra
from omegaconf import DictConfig

from pmf_lightning.config import CONF, check_choices, compose, one_line, scaled
from pmf_lightning.errors import UserError, explained
from pmf_lightning.hydra_compat import MAIN
from pmf_lightning.sweeps import jobs
from pmf_lightning.terminal import plain_ending

_MULTIRUN = {"--multirun", "-m"}
_SHOWING = {"--cfg", "-c", "--info", "-i"}
# With these flags Hydra does something else than to run one job.
_OTHER = {"--help", "-h", "--hydra-help", "--shell-completion", "-sc", *_SHOWING, *_MULTIRUN}
# Choices that need a plugin of Hydra: its module, and the extra that installs it.
_PLUGINS = {
    "launcher=slurm": ("hydra_submitit_launcher", "slurm"),
    "launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
}


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of a configuration into a command-line program: ``main()`` exits with 2 on bad input.

    A multirun goes on when one of its jobs fails, and exits with the highest code in the end (sweeps/jobs.py).
    """

    def wrap(job: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(job)
        def reporting(cfg: DictConfig) -> Any:
            if jobs.in_multirun():
                return jobs.run(job, cfg)
            return with_one_line_errors(lambda: job(cfg))

        run = hydra.main(config_path=str(CONF), config_name=config_name, **MAIN)(reporting)

        def main() -> None:
            with plain_ending():
                with_one_line_errors(lambda: _check_arguments(config_name))
                if _MULTIRUN.isdisjoint(sys.argv[1:]):
                    run()
                else:
                    jobs.all_of_them(run)

        return main

    return wrap


def _check_arguments(config_name: str) -> None:
    """Compose once before Hydra does, whose own errors span many lines."""
    sys.argv[1:] = arguments = scaled(sys.argv[1:])
    _check_launcher(arguments)
    several, flags = not _MULTIRUN.isdisjoint(arguments), {argument.partition("=")[0] for argument in arguments}
    if several and (shown := _SHOWING & flags):
        raise UserError(f"{shown.pop()}: Hydra shows what one run comes to; leave -m out, and choose one value of each")
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if _OTHER.isdisjoint(arguments):
        compose([a for a in arguments if not a.startswith("-")], config_name)
    else:
        check_choices(overrides)
    if several:  # what the jobs share; each of them is composed by itself
        compose([one for one in overrides if one.startswith(("hydra.", "launcher=", "sweeper="))], config_name)


def _check_launcher(arguments: Sequence[str]) -> None:
    """Raise UserError where the jobs cannot be chosen, or go, as they are meant to."""
    several = not _MULTIRUN.isdisjoint(arguments)
    if several and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("-m: under torchrun every process would go through the whole sweep; leave torchrun out")
    for chosen in _PLUGINS.keys() & set(arguments):
        if not several:
            raise UserError(f"{chosen}: Hydra hands multiruns alone to a launcher or sweeper; add -m")
        module, extra = _PLUGINS[chosen]
        try:
            import_module(f"hydra_plugins.{module}")
        except ImportError as error:
            raise UserError(f"{chosen}: it needs a plugin of Hydra; pip install 'pmf_lightning[{extra}]'") from error


def with_one_line_errors(work: Callable[[], Any]) -> Any:
    """Run ``work`` and return what it returns; print bad input as one line and exit with the code of its kind."""
    try:
        return work()
    except Exception as raised:
        error = explained(raised)
        if not isinstance(error, jobs.KNOWN):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(jobs.exit_code(error))
