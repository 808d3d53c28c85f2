"""Detect how this process was launched from the environment variables of torchrun, srun and Lightning.

Stale variables come from containers, interactive allocations, and batch scripts that start one process without srun.
They are removed, so that Lightning and we treat such a process as a single one.
"""

import os
from collections.abc import MutableMapping

from pmf_lightning.utils.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")  # without them processes cannot find each other
TASKS = ("SLURM_NTASKS", "SLURM_NPROCS")
TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
_SHELLS = ("interactive", "bash", "sh", "zsh", "fish", "tcsh", "csh", "ksh")  # job names of salloc and srun --pty
_LARGEST = 10_000_000

Environment = MutableMapping[str, str]


def settle(environment: Environment | None = None) -> list[str]:
    """Remove stale launch variables from the environment; return a one-line warning for each that was ignored.

    Raises UserError if variables contradict each other.
    """
    words = os.environ if environment is None else environment
    for name in (*RANKS, *SIZES, *MEETING, *TASKS, *TASK, "TORCHELASTIC_RUN_ID"):
        if name in words and not words[name].strip():
            del words[name]  # a script copied an unset variable
    for names, lowest in ((RANKS, 0), (SIZES, 1), (TASKS, 1), (TASK, 0)):
        for name in names:
            _check_number(words, name, lowest)
    warnings = _settle_slurm(words)
    if srun_tasks(words) > 1:
        _check_srun(words)
    elif "TORCHELASTIC_RUN_ID" in words:
        _check_complete(words, ("RANK", "LOCAL_RANK", "WORLD_SIZE", *MEETING), "torchrun")
    elif all(name in words for name in MEETING):
        if "RANK" in words:
            _check_complete(words, ("WORLD_SIZE",), "torchrun")
    else:
        warnings += _settle_ranks(words)
    _check_order(words)
    return warnings


def srun_tasks(environment: Environment | None = None) -> int:
    """Return the number of processes that srun started for this command; 1 if srun did not start this process."""
    words = os.environ if environment is None else environment
    count = words.get("SLURM_NTASKS", "").strip()
    return int(count) if count.isdigit() and _by_srun(words) else 1


def _by_srun(words: Environment) -> bool:
    is_shell = words.get("SLURM_JOB_NAME") in _SHELLS
    return not is_shell and "SLURM_PROCID" in words and ("SLURM_STEP_ID" in words or "SLURM_STEPID" in words)


def _check_number(words: Environment, name: str, lowest: int) -> None:
    value = words.get(name)
    if value is None:
        return
    if not (value.strip().isascii() and value.strip().isdigit() and lowest <= int(value) <= _LARGEST):
        raise UserError(f"{name}={value}: it is a whole number, {lowest} or more; unset {name} in the environment")


def _settle_slurm(words: Environment) -> list[str]:
    """Remove SLURM's task variables if srun did not start this process."""
    count = int(words.get("SLURM_NTASKS", "1"))
    place = int(words.get("SLURM_PROCID", "0"))
    if _by_srun(words) or (count == 1 and place == 0 and "SLURM_PROCID" in words):
        return []
    left = [name for name in (*TASKS, *TASK) if name in words]
    said = f"SLURM_NTASKS={count}" if count > 1 else f"SLURM_PROCID={place}" if place else None
    for name in left:
        del words[name]
    if said is None:
        return []
    return [f"{said}: srun did not start this process, which runs alone; put srun in front to start several"]


def _check_srun(words: Environment) -> None:
    for name, other in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if name in words and other in words and int(words[name]) != int(words[other]):
            raise UserError(
                f"{name}={words[name]}, but {other}={words[other]}: srun and the environment say different things; "
                f"unset {name}"
            )


def _check_complete(words: Environment, needed: tuple[str, ...], launcher: str) -> None:
    if missing := [name for name in needed if name not in words]:
        there = next(name for name in ("TORCHELASTIC_RUN_ID", "RANK") if name in words)
        raise UserError(
            f"{there}={words[there]}, but {', '.join(missing)} not set; start by {launcher}, or unset {there} for one "
            "process"
        )


def _settle_ranks(words: Environment) -> list[str]:
    """Remove rank variables without a process group; UserError if they describe one with several ranks."""
    if "RANK" in words and int(words.get("WORLD_SIZE", "1")) > 1:
        missing = [name for name in MEETING if name not in words]
        raise UserError(
            f"RANK={words['RANK']} WORLD_SIZE={words['WORLD_SIZE']}, but {', '.join(missing)} not set; start by "
            "torchrun, or unset RANK and WORLD_SIZE for one process"
        )
    meaningful = [f"{name}={words[name]}" for name in RANKS if int(words.get(name, "0")) > 0]
    meaningful += [f"{name}={words[name]}" for name in SIZES if int(words.get(name, "1")) > 1]
    for name in (*RANKS, *SIZES):
        words.pop(name, None)
    if not meaningful:
        return []
    return [f"{' '.join(meaningful)}: no launcher started this process, which runs alone; unset it in the environment"]


def _check_order(words: Environment) -> None:
    """Raise UserError if a rank is not below the number of processes."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in words and size in words and int(words[rank]) >= int(words[size]):
            raise UserError(
                f"{rank}={words[rank]} {size}={words[size]}: ranks count from 0 to {int(words[size]) - 1}; unset both "
                "in the environment for one process"
            )
