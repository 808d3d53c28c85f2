"""Find the runs of a multirun before Hydra starts the first one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.command_line import as_typed
from pmf_lightning.config.compose import compose, one_line
from pmf_lightning.config.job_arguments import strip_launcher
from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.training import resume
from pmf_lightning.training.prepare import run_request
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.errors import UserError

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts: its entry in the sweep and its configuration."""

    arm: SweepRun
    cfg: DictConfig

    @property
    def finished(self) -> bool:
        """Whether the run is complete and would not be repeated."""
        return self.arm.state == "finished"


def planned(config: DictConfig) -> list[PlannedRun] | None:
    """Return the runs of a multirun in Hydra's order; None if its sweeper chooses them while it goes.

    ``config`` is the multirun's, including "hydra". Raises UserError if a run cannot be composed, or if two runs would
    write to one directory.
    """
    if config.hydra.sweeper["_target_"] != BASIC:
        return None
    overrides = _overrides(config)
    same = fixed_keys(config)
    swept = list(dict.fromkeys(key for one in overrides if (key := one.get_key_element()) not in same))
    jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    found = [_plan(job, swept) for job in jobs]
    _refuse_shared_folders([one.arm for one in found])
    return found


def fixed_keys(config: DictConfig) -> set[str]:
    """Return the keys that have the same value in all runs of a multirun; the last override of a key counts."""
    last = {override.get_key_element(): override.is_sweep_override() for override in _overrides(config)}
    return {key for key, several in last.items() if not several}


def _overrides(config: DictConfig) -> list[Override]:
    """Parse the overrides like Hydra's sweeper: its own params first, then the command line, which takes precedence."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # each job resolves its own references
    try:
        return OverridesParser.create().parse_overrides([*params, *given])
    except HydraException as error:
        raise UserError(one_line(error)) from error


def _plan(job: Sequence[str], swept: Sequence[str]) -> PlannedRun:
    job = [as_typed(one) for one in job]
    cfg, own = compose(job), strip_launcher(job)
    values = dict(override.split("=", 1) for override in job)
    name = " ".join(f"{key}={values[key]}" for key in swept if key != "seed")
    study = cfg.get("study")
    if not study and "SLURM_" in str(OmegaConf.to_container(cfg, resolve=False)["run_dir"]):
        return PlannedRun(SweepRun(name, cfg.seed, None, own), cfg)  # run_dir is known only when the job runs
    try:
        where = cfg.run_dir if cfg.run_dir is None else Path(cfg.run_dir)
        finished, conflict = _stored(run_request(cfg))
    except OmegaConfBaseException:  # run_dir depends on the number of the job
        return PlannedRun(SweepRun(name, cfg.seed, None, own), cfg)
    arm = SweepRun(str(study.arm) if study else name, cfg.seed, where, own, conflict)
    return PlannedRun(replace(arm, left=not finished), cfg)


def _stored(request: RunRequest) -> tuple[bool, str | None]:
    """Return whether a run is complete in its directory, and why it could not resume there; None if it could."""
    try:
        return resume.finished(request) is not None, None
    except UserError as error:
        return False, str(error)


def _refuse_shared_folders(arms: Sequence[SweepRun]) -> None:
    seen: dict[Path, SweepRun] = {}
    for arm in arms:
        if arm.run_dir is not None and (other := seen.setdefault(arm.run_dir.resolve(), arm)) is not arm:
            names = [f"{a.arm} seed={a.seed}".strip() for a in (other, arm)]
            raise UserError(
                f"run_dir={arm.run_dir}: both {names[0]} and {names[1]} would write there; put the swept keys into its "
                "name, as run_dir='runs/mine/${name}-seed${seed}', or leave run_dir out"
            )


def common_parent(arms: Sequence[SweepRun], default: Path) -> Path:
    """Return the folder of a sweep: the common parent of its run directories, else ``default``."""
    parents = {None if arm.run_dir is None else arm.run_dir.parent for arm in arms}
    only = parents.pop() if len(parents) == 1 else None
    return default if only is None else only
