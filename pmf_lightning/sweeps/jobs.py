"""The jobs of a multirun, one after the other: a failing one does not end the others, a signal ends all of them.

Hydra calls each job and keeps nothing but what it returns. What became of it is written down here, in this process;
hydra_callback.py carries it over from the processes of a launcher. ``run_multirun`` is the whole command around them.
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
    """A job ran in a process of its own, which said why it ended; ``code`` is its exit code."""

    def __init__(self, code: int, line: str):
        super().__init__(line)
        self.code = code


class Stopped(BaseException):
    """A signal ends the multirun; no Exception, so that it passes through Hydra."""


@dataclass(frozen=True)
class Outcome:
    """What became of job ``number``: its exit code, one line where it failed, and its directory where it has one."""

    number: int
    overrides: Sequence[str] = ()
    code: int = 0
    error: str | None = None
    run_dir: str | None = None


class _Multirun:
    """What this process knows of the multirun under way."""

    def __init__(self):
        self.here = False  # whether the multirun was started in this process
        self.outcomes: list[Outcome] = []
        self.folders: set[str] = set()  # what its jobs have written to
        self.at_end: list[Callable[[], Any]] = []


_now = _Multirun()


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with ``error``."""
    return (
        error.code
        if isinstance(error, SubprocessFailed)
        else _CODES.get(type(error), 2 if isinstance(error, KNOWN) else 1)
    )


def outcomes() -> list[Outcome]:
    """Return what became of the jobs, as far as this process knows; the list may be added to."""
    return _now.outcomes


def in_main_process() -> bool:
    """Tell whether the multirun was started in this process, rather than one that a launcher made."""
    return _now.here


def at_the_end(action: Callable[[], Any]) -> None:
    """Call ``action`` when the multirun of this process is over, also when a signal ended it."""
    _now.at_end.append(action)


def in_multirun() -> bool:
    """Tell whether the running job is one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def defer_first_interrupt() -> None:
    """Let the first Ctrl-C go to the processes of the runs alone, so that they can save; the second ends this one."""

    def take_down(number: int, frame: FrameType | None) -> None:
        RECEIVED.append(signal.Signals(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nwaiting for the runs under way to save; Ctrl-C again ends them at once", flush=True)

    before = signal.signal(signal.SIGINT, take_down)
    at_the_end(lambda: signal.signal(signal.SIGINT, before))


def run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job of a multirun and note what became of it; return what it returns, None where it failed.

    Errors are printed: what the user can mend as one line, anything else with its traceback. After a signal the job is
    not started, and in the process of the multirun ``Stopped`` ends them all.
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
            code, line = exit_code(error), _said(error)
    _now.outcomes.append(Outcome(about.job.num, job_overrides(), code, line, os.environ.get(RUN_DIR)))
    if RECEIVED and _now.here:
        raise Stopped
    if code and not _now.here and srun_tasks() > 1:
        sys.exit(code)  # one of several processes of this job: the others must not wait for it
    return value


def _own_folder(cfg: DictConfig) -> None:
    """Raise UserError where an earlier job of this process has written to the same ``out``."""
    out = cfg.get("out")
    if out is None:
        return
    if out in _now.folders:
        raise UserError(
            f"out={out}: an earlier run of this sweep has written there; let it vary, as in 'out={out}/${{seed}}'"
        )
    _now.folders.add(out)


def _said(error: Exception) -> str:
    """Print an error, in short where the job before had the same; return it as one line."""
    if not isinstance(error, KNOWN):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    line = one_line(error)
    if not isinstance(error, SubprocessFailed):
        again = bool(_now.outcomes) and _now.outcomes[-1].error == line
        print("error: the same again" if again else f"error: {line}", file=sys.stderr, flush=True)
    return line


def run_multirun(multirun: Callable[[], None]) -> None:
    """Run the command ``multirun``; exit with the highest code of its jobs, 0 where only a signal ended it."""
    _now.__init__()
    _now.here = True
    RECEIVED.clear()
    try:
        multirun()
    except (KeyboardInterrupt, Stopped):
        RECEIVED.append(signal.SIGINT)
    finally:
        _now.here = False
        if RECEIVED:
            print(f"{RECEIVED[0].name}: the sweep ends here; the same command goes on with it", flush=True)
        for action in _now.at_end:
            action()
    if worst := max((outcome.code for outcome in _now.outcomes), default=0):
        sys.exit(worst)


def measured(cfg: DictConfig, summary: Mapping[str, Any]) -> float | None:
    """Return ``study.measure`` of a summary; without a study its Frechet distance, of whatever features.

    None where the run has no such number: it was stopped, or measures nothing.
    """
    if cfg.get("study"):
        value = summary.get(cfg.study.measure)
    else:
        distances = [value for name, value in summary.items() if name == "fd" or name.startswith("fid")]
        value = next((value for value in distances if isinstance(value, int | float)), None)
    return None if value is None else float(value)
