"""Runs of Weights & Biases: what they are called and stand beside, and how one is opened that no other job shares."""

import os
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.provenance import SWEEP

MODES = ("online", "offline", "disabled")
_KEEP = "or keep it here for later, logger.wandb.mode=offline"
# Arguments that say nothing of what is trained; an experiment is the group.
_UNSAID = {"cache_dir", "ckpt", "experiment", "hydra", "launcher", "logger", "out", "run_dir", "scale"}
_UNSAID |= {"sweeper", "workers"}
_NAME, _JOB_TYPE = 128, 64  # characters that W&B takes of a name or a group, of a job type or a tag


@dataclass(frozen=True)
class Job:
    """What the command line says: the ``overrides`` of this job, and those of the ``sweep`` that it belongs to."""

    overrides: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """How a run is found: its ``name``; its ``group`` of runs, and in it the ``job_type``, an arm; and ``tags``."""

    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]


def hydra_job() -> Job:
    """Return the running job of Hydra, an empty one outside of Hydra."""
    if not HydraConfig.initialized():
        return Job()
    hydra = HydraConfig.get()
    began_here = hydra.mode == RunMode.MULTIRUN and {"-m", "--multirun"} & set(sys.argv[1:])
    sweep = sys.argv[1:] if began_here else shlex.split(os.environ.get(SWEEP, ""))
    return Job(tuple(hydra.overrides.task), tuple(sweep))


def labels(config: Mapping[str, Any], folder: Path, job: Job, kind: str = "train") -> Labels:
    """Return the labels of a run of ``config`` (a resolved training configuration) that writes to ``folder``.

    The group is a study at its scale, else the experiment, else the arguments of the multirun, else none. The job type
    is the arm of the study, else all overrides but the seed of a multirun's job, else ``kind``. The name is made of the
    overrides, else it is the folder's.
    """
    said, study = _saying(job.overrides), config.get("study")
    chosen = [o.partition("=")[2].rpartition("/")[2] for o in job.overrides if o.startswith("experiment=")]
    sweep = " ".join(_saying(job.sweep))
    if study:
        group, arm = f"{study['name']}-{study['scale']}", study["arm"]
        tags = [study["name"], study["scale"], arm]
    else:
        group = chosen[-1] if chosen else sweep
        arm = " ".join(override for override in said if _key(override) != "seed") if job.sweep else ""
        tags = [config["name"], config["data"]["name"]]
    return Labels(
        name=_short(" ".join(said) or Path(folder).name, _NAME),
        group=_short(group, _NAME) or None,
        job_type=_short(arm or kind, _JOB_TYPE),
        tags=tuple(dict.fromkeys(_short(tag, _JOB_TYPE) for tag in tags)),
    )


def _saying(arguments: Sequence[str]) -> list[str]:
    return [a for a in arguments if "=" in a and not a.startswith("-") and _key(a).split(".")[0] not in _UNSAID]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition("@")[0]


def _short(text: str, most: int) -> str:
    """Return a text of at most so many characters; what is cut off still makes a difference."""
    return text if len(text) <= most else f"{text[: most - 9]}-{digest(text)[:8]}"


def new_id() -> str:
    """Return an id that no other run has."""
    return uuid.uuid4().hex[:12]


def check(options: Mapping[str, Any]) -> None:
    """See before long work that a run can be opened: its mode is known, and there is a login. Raises UserError."""
    if options["mode"] not in (None, *MODES):
        raise UserError(
            f"logger.wandb.mode={options['mode']}: there is no such mode; {suggestions(str(options['mode']), MODES)}"
        )
    if _mode(options) in (None, "online"):
        log_in("logger=wandb", _KEEP)


def _mode(options: Mapping[str, Any]) -> str | None:
    """Return the mode that is asked for now: W&B itself hears the environment once in the life of a process."""
    return options["mode"] or os.environ.get("WANDB_MODE")


def log_in(asked: str, otherwise: str) -> bool:
    """See that there is a login, or ask for one at a terminal; False where WANDB_MODE keeps W&B from looking.

    A UserError begins and ends with the arguments.
    """
    import wandb  # a second of import time that other runs need not spend

    try:
        return wandb.login(verify=False)
    except wandb.Error as error:
        raise UserError(_refused(asked, error, otherwise)) from error


def open_run(options: Mapping[str, Any], labels: Labels, folder: Path, config: Mapping[str, Any], run_id: str) -> Any:
    """Open the run ``run_id`` and return it; what WANDB_RUN_ID and its kin say of another is not heard.

    It goes on where W&B knows that id. Raises UserError where W&B refuses.
    """
    import wandb

    try:
        return wandb.init(
            project=options["project"],
            entity=options["entity"],
            group=options["group"] or labels.group,
            name=options["name"] or labels.name,
            job_type=labels.job_type,
            tags=labels.tags,
            mode=_mode(options),
            id=run_id,
            resume="allow",
            reinit="create_new",  # never a run that an earlier job of this process left open
            dir=str(Path(folder).resolve()),  # W&B writes from a process that may have begun in another folder
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise UserError(_refused("logger=wandb", error, _KEEP)) from error


def _refused(asked: str, error: Exception, otherwise: str) -> str:
    return f"{asked}: {' '.join(str(error).split())}; {otherwise}"


def is_offline(run: Any) -> bool:
    """Tell whether a run is kept on disk alone."""
    return run.settings.mode in ("offline", "dryrun")


def address(run: Any) -> str | None:
    """Return the page of a run, None where it has none."""
    return run.url if run.settings.mode == "online" else None


def sync_command(folder: Path, run_id: str) -> str:
    """Return what sends an offline run that was opened in ``folder`` to W&B, all its sessions in their order."""
    return shlex.join(["wandb", "sync", *map(str, sorted((Path(folder) / "wandb").glob(f"offline-run-*-{run_id}")))])
