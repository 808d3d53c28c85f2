"""Command-line entry points on top of Hydra; bad input prints one line instead of a traceback."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import job_arguments, search_path
from pmf_lightning.config.command_line import swept
from pmf_lightning.config.compose import CONF, compose, help_text, one_line, prepared
from pmf_lightning.config.groups import command_file
from pmf_lightning.config.option_checks import check_values
from pmf_lightning.distributed import launched
from pmf_lightning.pipeline.sources import check_given
from pmf_lightning.sweeps import jobs
from pmf_lightning.utils.errors import UserError, translate_os_error
from pmf_lightning.utils.hydra_compat import MAIN, VERSION_BASE
from pmf_lightning.utils.terminal import plain_ending

_MULTIRUN = {"--multirun", "-m"}
_SHOWING = {"--cfg", "-c", "--info", "-i"}
# With these flags Hydra ignores all overrides.
_HELP = {"--help", "-h", "--hydra-help", "--shell-completion", "-sc"}
# Flags whose value is the next argument.
_TAKES_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"),
}
# Overrides that need a Hydra plugin -> (its module, the extra that installs it)
_PLUGINS = {
    "launcher=slurm": ("hydra_submitit_launcher", "slurm"),
    "launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
}


def command(
    config_name: str, models: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorator: turn a function of a configuration into a command-line ``main()`` that exits with 2 on bad input.

    ``models`` are the options that name models, of those that the configuration has: mistyped paths of a single run are
    refused before PyTorch is imported.
    A multirun continues when one of its jobs fails, and exits with the highest code at the end (sweeps/jobs.py).
    """

    def wrap(job: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(job)
        def reporting(cfg: DictConfig) -> Any:
            if jobs.in_multirun():
                return jobs.run(job, cfg)
            return with_one_line_errors(lambda: job(cfg))

        run = hydra.main(config_path=str(CONF), config_name=command_file(config_name), **MAIN)(reporting)

        def main() -> None:
            with plain_ending(), ExitStack() as ending:
                with_one_line_errors(_settle)
                with_one_line_errors(lambda: _add_folders(ending))
                cfg = with_one_line_errors(lambda: _check_arguments(config_name))
                if cfg is not None:
                    with_one_line_errors(lambda: _check_models(cfg, models))
                    _run_composed(cfg, reporting)
                elif _MULTIRUN.isdisjoint(sys.argv[1:]):
                    run()
                else:
                    jobs.run_multirun(run)

        return main

    return wrap


def _check_models(cfg: DictConfig, options: Sequence[str]) -> None:
    for option, given in OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(options))).items():
        check_given(option, given)


def _run_composed(cfg: DictConfig, job: Callable[[DictConfig], Any]) -> None:
    """Run a job as ``hydra.main`` does, without the two compositions of ``hydra.main``.

    ``cfg`` is composed, with Hydra's section, which the job does not see. Errors of the job are raised as they are.
    """
    name, cfg.hydra.mode = cfg.hydra.job.config_name, RunMode.RUN
    with hydra.initialize_config_dir(str(CONF), job_name=cfg.hydra.job.name, **VERSION_BASE):
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name=name)
        done = run_job(
            task_function=job,
            config=cfg,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(GlobalHydra.instance().config_loader(), callbacks),
        )
        callbacks.on_run_end(config=cfg, config_name=name, job_return=done)
        _ = done.return_value  # raises what the job raised


def _settle() -> None:
    """Detect how this process was launched, before anything else reads the environment."""
    warnings = launched.settle()
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if warnings:
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = 0  # Lightning read the rank when it was imported


def _add_folders(ending: ExitStack) -> None:
    """Move --config-dir and hydra.searchpath from sys.argv to the search path of this command; raises UserError."""
    sys.argv[1:], entries = search_path.taken_from(sys.argv[1:])
    ending.enter_context(search_path.added(entries))


def _check_arguments(config_name: str) -> DictConfig | None:
    """Check the arguments before Hydra, whose errors span many lines; print help and exit.

    Returns the configuration of a single run, with Hydra's section. With flags and options of Hydra it returns None and
    rewrites sys.argv for ``hydra.main``, which composes anew.
    """
    several = not _MULTIRUN.isdisjoint(sys.argv[1:])
    at, given = _overrides_among(sys.argv[1:])
    overrides = prepared(given, config_name, several)
    flags = [argument for place, argument in enumerate(sys.argv[1:]) if place not in at]
    if flags in (["--help"], ["-h"]):
        print(help_text(overrides, config_name))
        sys.exit()
    sys.argv[1:] = arguments = [*flags, *overrides]
    _check_launcher(arguments)
    if several and (shown := _SHOWING & {flag.partition("=")[0] for flag in flags}):
        raise UserError(
            f"{shown.pop()}: Hydra shows the configuration of one run; leave -m out, and choose one value of each"
        )
    if several:
        _check_jobs(overrides, config_name)
    elif _HELP.isdisjoint(flags):
        cfg = compose(overrides, config_name, with_hydra=True)
        if not flags and not any("hydra" in one.partition("=")[0] for one in overrides) and cfg.hydra.mode is None:
            return cfg
    return None


def _overrides_among(arguments: Sequence[str]) -> tuple[set[int], list[str]]:
    """Return the positions and the texts of the overrides: arguments that are neither flags nor values of flags."""
    at: set[int] = set()
    for place, argument in enumerate(arguments):
        is_value = place > 0 and arguments[place - 1] in _TAKES_VALUE
        if not argument.startswith("-") and not is_value:
            at.add(place)
    return at, [arguments[place] for place in sorted(at)]


def _check_jobs(overrides: Sequence[str], config_name: str) -> None:
    """Check the overrides that all jobs of a multirun share, and each swept value; raises UserError."""
    compose([one for one in overrides if one.startswith(("hydra.", "launcher=", "sweeper="))], config_name)
    of_each = [one for one in job_arguments.strip_launcher(overrides) if not one.startswith("hydra.")]
    first, further = [], []
    for one in of_each:
        values = swept(one)
        if values is not None:
            first += values[:1]
            further += values[1:]
        else:
            first.append(one)
    compose(first, config_name)
    check_values(further, config_name)


def _check_launcher(arguments: Sequence[str]) -> None:
    """Raise UserError if the launcher or sweeper is unusable: under torchrun, without -m, or without its plugin."""
    several = not _MULTIRUN.isdisjoint(arguments)
    if several and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("-m: under torchrun every process would run the complete sweep; leave torchrun out")
    for chosen in _PLUGINS.keys() & set(arguments):
        if not several:
            raise UserError(f"{chosen}: Hydra uses launchers and sweepers for multiruns only; add -m")
        module, extra = _PLUGINS[chosen]
        try:
            import_module(f"hydra_plugins.{module}")
        except ImportError as error:
            raise UserError(f"{chosen}: it needs a plugin of Hydra; pip install 'pmf_lightning[{extra}]'") from error


def with_one_line_errors(work: Callable[[], Any]) -> Any:
    """Call ``work`` and return its result; print a known error as one line and exit with its code."""
    try:
        return work()
    except Exception as raised:
        error = translate_os_error(raised)
        if not isinstance(error, jobs.KNOWN):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(jobs.exit_code(error))
