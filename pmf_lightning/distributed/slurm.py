"""SLURM support: requeue a job when its time limit is reached."""

import os
import subprocess

from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only


def plugins() -> list[SLURMEnvironment]:
    """Return Lightning's SLURM plugin without its SIGUSR1 handler if srun started this process, otherwise [].

    The handler would write a second checkpoint to the working directory in the middle of a step.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def job() -> str | None:
    """Return this process's job id for scontrol (of an array, the one element), or None outside a job."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one element has the array's id as its SLURM_JOB_ID
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@rank_zero_only
def requeue(resumes: bool) -> None:
    """Requeue this job if its command ``resumes`` this run, and print the result."""
    name = job()
    if name is None:
        return
    if not resumes:
        print(f"job {name} is not queued again: its command would begin anew; add run_dir=... ckpt=auto", flush=True)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60)
        trouble = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    answer = f"scontrol requeue {name} failed: {trouble}" if trouble else f"job {name} is queued again"
    print(answer, flush=True)
