"""Run the jobs of a multirun: a failed job does not stop the others, a signal stops all of them.

Hydra keeps only the return value of each job, so this module records the outcomes of its process. hydra_callback.py
collects those of a launcher's processes. ``run_multirun`` runs the complete command.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.config.job_arguments import job_overrides
from pmf_lightning.distributed.launched import srun_tasks
from pmf_lightning.utils.cache import RUN_DIR
from pmf_lightning.utils.errors import Diverged, NotSaved, OutOfResources, ProcessLost, UserError, translate_os_error
from pmf_lightning.utils.signals import RECEIVED

KNOWN = (UserError, HydraException, OmegaConfBaseException)

_CODES = {OutOfResources: 1, Diverged: 3, NotSaved: 4, ProcessLost: 5}


class SubprocessFailed(UserError):
    """A job in its own process failed; the message is its error, ``code`` its exit code."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


class Stopped(BaseException):
    """A signal ends the multirun. A BaseException, so that Hydra does not catch it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of job ``number``: exit code, one-line error if it failed, and run directory if it has one."""

    number: int
    overrides: Sequence[str] = ()
    code: int = 0
    error: str | None = None
    run_dir: str | None = None


class _Multirun:
    """The state of the current multirun in this process."""

    def __init__(self):
        self.started_here = False  # whether the multirun was started in this process
        self.outcomes: list[Outcome] = []
        self.folders: set[str] = set()  # the ``out`` folders of its jobs
        self.at_end: list[Callable[[], Any]] = []


_multirun = _Multirun()


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with ``error``."""
    return (
        error.code
        if isinstance(error, SubprocessFailed)
        else _CODES.get(type(error), 2 if isinstance(error, KNOWN) else 1)
    )


def outcomes() -> list[Outcome]:
    """Return the outcomes that this process knows; callers may append to the list."""
    return _multirun.outcomes


def in_main_process() -> bool:
    """Return whether the multirun was started in this process, and not in one of a launcher."""
    return _multirun.started_here


def at_the_end(action: Callable[[], Any]) -> None:
    """Register ``action`` to be called when the multirun of this process ends, also by a signal."""
    _multirun.at_end.append(action)


def in_multirun() -> bool:
    """Return whether the current job is part of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def defer_first_interrupt() -> None:
    """Ignore the first Ctrl-C in this process, so that the processes of the runs can save; the second one ends it."""

    def record(number: int, frame: FrameType | None) -> None:
        RECEIVED.append(signal.Signals(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nwaiting for the current runs to save; Ctrl-C again ends them at once", flush=True)

    before = signal.signal(signal.SIGINT, record)
    at_the_end(lambda: signal.signal(signal.SIGINT, before))


def run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job of a multirun and record its outcome; return its result, None if it failed.

    Known errors are printed as one line, others with their traceback. After a signal the job is not started; in the
    process of the multirun ``Stopped`` is raised, which ends all jobs.
    """
    about, value, code, line = HydraConfig.get(), None, 0, None
    os.environ.pop(RUN_DIR, None)
    if not RECEIVED:
        try:
            _own_folder(cfg)
            value = job(cfg)
        except KeyboardInterrupt:
            RECEIVED.append(signal.SIGINT)
        except Exception as raised:
            error = translate_os_error(raised)
            code, line = exit_code(error), _report(error)
    _multirun.outcomes.append(Outcome(about.job.num, job_overrides(), code, line, os.environ.get(RUN_DIR)))
    if RECEIVED and _multirun.started_here:
        raise Stopped
    if code and not _multirun.started_here and srun_tasks() > 1:
        sys.exit(code)  # one of several processes of this job: exiting keeps the others from waiting for it
    return value


def _own_folder(cfg: DictConfig) -> None:
    """Raise UserError if an earlier job of this process has written to the same ``out``."""
    out = cfg.get("out")
    if out is None:
        return
    if out in _multirun.folders:
        raise UserError(
            f"out={out}: an earlier run of this sweep has written there; let it vary, as in 'out={out}/${{seed}}'"
        )
    _multirun.folders.add(out)


def _report(error: Exception) -> str:
    """Print an error, abbreviated if the previous job had the same one; return it as one line."""
    if not isinstance(error, KNOWN):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    line = one_line(error)
    if not isinstance(error, SubprocessFailed):
        repeated = bool(_multirun.outcomes) and _multirun.outcomes[-1].error == line
        print("error: the same as above" if repeated else f"error: {line}", file=sys.stderr, flush=True)
    return line


def run_multirun(multirun: Callable[[], None]) -> None:
    """Run the command ``multirun``; exit with the highest code of its jobs, 0 if only a signal ended it."""
    _multirun.__init__()
    _multirun.started_here = True
    RECEIVED.clear()
    try:
        multirun()
    except (KeyboardInterrupt, Stopped):
        RECEIVED.append(signal.SIGINT)
    finally:
        _multirun.started_here = False
        if RECEIVED:
            print(f"{RECEIVED[0].name}: the sweep ends here; the same command resumes it", flush=True)
        for action in _multirun.at_end:
            action()
    if worst := max((outcome.code for outcome in _multirun.outcomes), default=0):
        sys.exit(worst)


def measured(cfg: DictConfig, summary: Mapping[str, Any]) -> float | None:
    """Return ``study.measure`` of a summary; without a study its Frechet distance, of any features, or mean ratio.

    The mean ratio of metrics=battery is that of the held-out encoders.

    None if the run has no such number: it was stopped, or has no metrics.
    """
    if cfg.get("study"):
        value = summary.get(cfg.study.measure)
    else:
        distances = [value for name, value in summary.items() if name in ("fd", "fdr") or name.startswith("fid")]
        value = next((value for value in distances if isinstance(value, int | float)), None)
    return None if value is None else float(value)
