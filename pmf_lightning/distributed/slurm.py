"""What a run under SLURM does by itself: it goes back into the queue when its time is up."""

import os
import subprocess

from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig


def plugins() -> list[SLURMEnvironment]:
    """Return Lightning's view of the tasks that srun started, without its own answer to SIGUSR1; [] elsewhere.

    Its answer would be a second checkpoint in the working directory, written in the middle of a step.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def job() -> str | None:
    """Return the job this process belongs to, as scontrol takes it: of an array, the one element. None: no job."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # SLURM_JOB_ID of one of the elements is that of the whole array
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@rank_zero_only
def requeue(cfg: DictConfig) -> None:
    """Put this job back into the queue, if the same command then goes on with this run; say what came of it."""
    name = job()
    if name is None:
        return
    if cfg.run_dir is None or cfg.ckpt not in ("auto", "last"):
        print(f"job {name} is not queued again: its command would begin anew; add run_dir=... ckpt=auto", flush=True)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60)
        trouble = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    answer = f"scontrol requeue {name} failed: {trouble}" if trouble else f"job {name} is queued again"
    print(answer, flush=True)
