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
    env = os.environ if environment is None else environment
    for name in (*RANKS, *SIZES, *MEETING, *TASKS, *TASK, "TORCHELASTIC_RUN_ID"):
        if name in env and not env[name].strip():
            del env[name]  # a script copied an unset variable
    for names, lowest in ((RANKS, 0), (SIZES, 1), (TASKS, 1), (TASK, 0)):
        for name in names:
            _check_number(env, name, lowest)
    warnings = _settle_slurm(env)
    if srun_tasks(env) > 1:
        _check_srun(env)
    elif "TORCHELASTIC_RUN_ID" in env:
        _check_complete(env, ("RANK", "LOCAL_RANK", "WORLD_SIZE", *MEETING), "torchrun")
    elif all(name in env for name in MEETING):
        if "RANK" in env:
            _check_complete(env, ("WORLD_SIZE",), "torchrun")
    else:
        warnings += _settle_ranks(env)
    _check_order(env)
    return warnings


def srun_tasks(environment: Environment | None = None) -> int:
    """Return the number of processes that srun started for this command; 1 if srun did not start this process."""
    env = os.environ if environment is None else environment
    count = env.get("SLURM_NTASKS", "").strip()
    return int(count) if count.isdigit() and _by_srun(env) else 1


def local_rank(environment: Environment | None = None) -> int:
    """Return the number of this process on its machine, from 0, as torchrun, Lightning or srun gives it."""
    env = os.environ if environment is None else environment
    if "LOCAL_RANK" in env:
        return int(env["LOCAL_RANK"])
    return int(env.get("SLURM_LOCALID", 0)) if srun_tasks(env) > 1 else 0


def _by_srun(env: Environment) -> bool:
    is_shell = env.get("SLURM_JOB_NAME") in _SHELLS
    return not is_shell and "SLURM_PROCID" in env and ("SLURM_STEP_ID" in env or "SLURM_STEPID" in env)


def _check_number(env: Environment, name: str, lowest: int) -> None:
    value = env.get(name)
    if value is None:
        return
    if not (value.strip().isascii() and value.strip().isdigit() and lowest <= int(value) <= _LARGEST):
        raise UserError(f"{name}={value}: it must be an integer, {lowest} or more; unset {name} in the environment")


def _settle_slurm(env: Environment) -> list[str]:
    """Remove SLURM's task variables if srun did not start this process."""
    count = int(env.get("SLURM_NTASKS", "1"))
    place = int(env.get("SLURM_PROCID", "0"))
    if _by_srun(env) or (count == 1 and place == 0 and "SLURM_PROCID" in env):
        return []
    left = [name for name in (*TASKS, *TASK) if name in env]
    found = f"SLURM_NTASKS={count}" if count > 1 else f"SLURM_PROCID={place}" if place else None
    for name in left:
        del env[name]
    if found is None:
        return []
    return [f"{found}: srun did not start this process, which runs alone; put srun in front to start several"]


def _check_srun(env: Environment) -> None:
    for name, other in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if name in env and other in env and int(env[name]) != int(env[other]):
            raise UserError(
                f"{name}={env[name]}, but {other}={env[other]}: srun and the environment disagree; unset {name}"
            )


def _check_complete(env: Environment, needed: tuple[str, ...], launcher: str) -> None:
    if missing := [name for name in needed if name not in env]:
        there = next(name for name in ("TORCHELASTIC_RUN_ID", "RANK") if name in env)
        raise UserError(
            f"{there}={env[there]}, but {', '.join(missing)} not set; start by {launcher}, or unset {there} for one "
            "process"
        )


def _settle_ranks(env: Environment) -> list[str]:
    """Remove rank variables without a process group; UserError if they describe one with several ranks."""
    if "RANK" in env and int(env.get("WORLD_SIZE", "1")) > 1:
        missing = [name for name in MEETING if name not in env]
        raise UserError(
            f"RANK={env['RANK']} WORLD_SIZE={env['WORLD_SIZE']}, but {', '.join(missing)} not set; start by "
            "torchrun, or unset RANK and WORLD_SIZE for one process"
        )
    meaningful = [f"{name}={env[name]}" for name in RANKS if int(env.get(name, "0")) > 0]
    meaningful += [f"{name}={env[name]}" for name in SIZES if int(env.get(name, "1")) > 1]
    for name in (*RANKS, *SIZES):
        env.pop(name, None)
    if not meaningful:
        return []
    return [f"{' '.join(meaningful)}: no launcher started this process, which runs alone; unset it in the environment"]


def _check_order(env: Environment) -> None:
    """Raise UserError if a rank is not below the number of processes."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in env and size in env and int(env[rank]) >= int(env[size]):
            raise UserError(
                f"{rank}={env[rank]} {size}={env[size]}: ranks count from 0 to {int(env[size]) - 1}; unset both "
                "in the environment for one process"
            )
