"""Run a multi-device job of a multirun in its own process.

Lightning starts the other ranks of a run with the command line of this process, so each of them would start the
complete multirun.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pmf_lightning.config.job_arguments import job_overrides
from pmf_lightning.distributed.launched import srun_tasks
from pmf_lightning.sweeps.jobs import SubprocessFailed, in_multirun
from pmf_lightning.training import run_dir
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.cache import ERROR, RUN_DIR
from pmf_lightning.utils.signals import RECEIVED, SIGNALS


def needs_subprocess(devices: int) -> bool:
    """Return whether this is a job of a multirun on several devices, for which Lightning would start processes."""
    started_already = srun_tasks() > 1
    return in_multirun() and not started_already and devices > 1


def train_in_subprocess(request: RunRequest) -> dict:
    """Run the train command with the overrides of this job, which is ``request``; return its summary.

    Raises SubprocessFailed and UserError. Signals are forwarded to that process, and it may take its time to save.
    """
    overrides = job_overrides()
    folder = request.run_dir or run_dir.choose(request)
    folder.mkdir(parents=True, exist_ok=True)  # a run that is refused keeps its error.txt in a folder that was there
    if request.run_dir is None:
        overrides.append(f"run_dir={folder}")
    os.environ[RUN_DIR] = str(folder)  # jobs.run reads the directory of this job from here
    process = subprocess.Popen([sys.executable, "-m", "pmf_lightning.train", *overrides])
    with _forward_signals(process):
        code = process.wait()
    if code:
        error = folder / ERROR
        message = f"the process of the run ended with exit code {code}"
        message = error.read_text().strip() if error.is_file() else message
        raise SubprocessFailed(code if code > 0 else 1, message)
    return json.loads((folder / "summary.json").read_text())


@contextmanager
def _forward_signals(process: subprocess.Popen) -> Iterator[None]:
    """Record signals and forward them. SIGINT is forwarded as SIGTERM, since the terminal sends SIGINT to both."""

    def forward(number: int, frame: FrameType | None) -> None:
        RECEIVED.append(signal.Signals(number))
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
