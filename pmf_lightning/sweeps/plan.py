"""The runs that a multirun is made of, found before Hydra starts the first."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from pmf_lightning.utils.errors import UserError

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts: what it is called and where it lies, and its configuration."""

    arm: SweepRun
    cfg: DictConfig

    @property
    def finished(self) -> bool:
        """Whether it would be left alone."""
        return self.arm.state == "finished" and self.cfg.ckpt == "auto"


def planned(config: DictConfig) -> list[PlannedRun] | None:
    """Return the runs of a multirun in Hydra's order; None where its sweeper chooses them on the way.

    ``config`` is that of the multirun, with its "hydra". Raises UserError for what cannot be composed, and where two
    runs would write to one directory.
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
    """Return the keys that a multirun sets alike for all its runs; what comes last of a key wins."""
    last = {override.get_key_element(): override.is_sweep_override() for override in _overrides(config)}
    return {key for key, several in last.items() if not several}


def _overrides(config: DictConfig) -> list[Override]:
    """Parse what Hydra's sweeper will: its own params, then the command line, which wins."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # references are the jobs' to resolve
    try:
        return OverridesParser.create().parse_overrides([*params, *given])
    except HydraException as error:
        raise UserError(one_line(error)) from error


def _plan(job: Sequence[str], swept: Sequence[str]) -> PlannedRun:
    cfg, own = compose([as_typed(one) for one in job]), strip_launcher(job)
    of_job = dict(override.split("=", 1) for override in job)
    named = " ".join(f"{key}={of_job[key]}" for key in swept if key != "seed")
    study = cfg.get("study")
    if not study and "SLURM_" in str(OmegaConf.to_container(cfg, resolve=False)["run_dir"]):
        return PlannedRun(SweepRun(named, cfg.seed, None, own), cfg)  # known when the job runs
    try:
        where = cfg.run_dir if cfg.run_dir is None else Path(cfg.run_dir)
        return PlannedRun(SweepRun(str(study.arm) if study else named, cfg.seed, where, own, _in_the_way(cfg)), cfg)
    except OmegaConfBaseException:  # it follows from the number of the job
        return PlannedRun(SweepRun(named, cfg.seed, None, own), cfg)


def _in_the_way(cfg: DictConfig) -> str | None:
    """Return why a run would not take up what lies in its directory, None where it would."""
    try:
        resume.finished(cfg)
    except UserError as error:
        return str(error)
    return None


def _refuse_shared_folders(arms: Sequence[SweepRun]) -> None:
    seen: dict[Path, SweepRun] = {}
    for arm in arms:
        if arm.run_dir is not None and (other := seen.setdefault(arm.run_dir.resolve(), arm)) is not arm:
            apart = [f"{a.arm} seed={a.seed}".strip() for a in (other, arm)]
            raise UserError(
                f"run_dir={arm.run_dir}: both {apart[0]} and {apart[1]} would write there; put what is swept into its "
                "name, as run_dir='runs/mine/${name}-seed${seed}', or leave run_dir out"
            )


def common_parent(arms: Sequence[SweepRun], otherwise: Path) -> Path:
    """Return the folder of a sweep: the parent that all its run directories have, ``otherwise`` without one."""
    parents = {None if arm.run_dir is None else arm.run_dir.parent for arm in arms}
    only = parents.pop() if len(parents) == 1 else None
    return otherwise if only is None else only
