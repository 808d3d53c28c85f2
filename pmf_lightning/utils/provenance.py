"""Provenance of a run's numbers: command, commit, versions and machine."""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pmf_lightning", "torch", "lightning", "numpy")
SWEEP = "PMF_LIGHTNING_SWEEP"  # environment variable: the arguments of a multirun, for its jobs in other processes
_HERE = Path(__file__).resolve().parent.parent


def provenance(accelerator: str) -> dict[str, Any]:
    """Return the provenance entries of run.json; ``commit`` is None if the package is not in a git checkout."""
    on_gpu = accelerator in ("gpu", "cuda") and torch.cuda.is_available()
    return {
        "command": command_line(),
        "commit": commit(),
        "uncommitted": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "conf", "pmf_lightning")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def command_line() -> str:
    """Return the running command as typed; in a process started by a launcher, the command of its multirun."""
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None)
    if SWEEP in os.environ and not str(name).startswith("pmf_lightning."):
        return f"python -m pmf_lightning.train {os.environ[SWEEP]}"
    if name in sys.orig_argv:
        return shlex.join(["python", "-m", name, *sys.orig_argv[sys.orig_argv.index(name) + 1 :]])
    if str(name).startswith("pmf_lightning."):  # started by pmf: python [-m] pmf COMMAND arguments
        typed = sys.orig_argv[1:]
        place = next((i for i, word in enumerate(typed) if Path(word).stem in ("pmf", "pmf_lightning")), 0)
        return shlex.join(["python", "-m", name, *typed[place + 2 :]])
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def commit() -> str | None:
    """Return the short hash of the package's commit, None outside a git checkout."""
    return _git("rev-parse", "--short=9", "HEAD") if (_HERE.parent / ".git").exists() else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each package."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str | None:
    """Return the output of git, None if git is missing or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_HERE.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
