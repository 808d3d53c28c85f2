"""Overrides of the running job, and the arguments of the command that resumes it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pmf_lightning.config import search_path
from pmf_lightning.config.command_line import as_typed


def strip_launcher(overrides: Sequence[str]) -> list[str]:
    """Remove the multirun overrides (launcher, sweeper), which a single run rejects."""
    return [one for one in overrides if one != "launcher=joblib" and not one.startswith("sweeper=")]


def job_overrides() -> list[str]:
    """Return the overrides of the running job as typed, without those that a single run rejects."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return strip_launcher([as_typed(one) for one in given])


def resume_arguments(folder: Path) -> list[str]:
    """Return the arguments of the command that resumes only this process's run, which writes to ``folder``."""
    given = job_overrides() if HydraConfig.initialized() else strip_launcher(sys.argv[1:])
    arguments = [one for one in given if not one.startswith(("run_dir=", "ckpt="))]
    submitted = ["-m"] if "launcher=slurm" in arguments else []  # the SLURM launcher works in multiruns only
    return [*submitted, *search_path.arguments(), *arguments, f"run_dir={folder}", "ckpt=last"]
