"""Open runs of Weights & Biases, each of its own job, and derive their names, groups and tags."""

import os
import re
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pmf_lightning.config.job_arguments import job_overrides
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.provenance import SWEEP

MODES = ("online", "offline", "disabled")
_OFFLINE_REMEDY = "or store it on disk for later, logger.wandb.mode=offline"
# Arguments that do not describe what is trained. The experiment becomes the group.
_NOT_IN_NAME = {"cache_dir", "ckpt", "experiment", "hydra", "launcher", "logger", "out", "run_dir", "scale"}
_NOT_IN_NAME |= {"callbacks", "debug", "sweeper", "num_workers"}
_NAME, _JOB_TYPE = 128, 64  # W&B's maximum length of a name or group, and of a job type or tag


@dataclass(frozen=True)
class Job:
    """A Hydra job: its ``overrides``, and those of the ``sweep`` that it belongs to."""

    overrides: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Labels of a W&B run: ``name``, ``group``, ``job_type`` (an arm of the group) and ``tags``."""

    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]


def hydra_job() -> Job:
    """Return the current Hydra job, an empty one outside of Hydra."""
    if not HydraConfig.initialized():
        return Job()
    hydra = HydraConfig.get()
    started_here = hydra.mode == RunMode.MULTIRUN and {"-m", "--multirun"} & set(sys.argv[1:])
    sweep = sys.argv[1:] if started_here else shlex.split(os.environ.get(SWEEP, ""))
    return Job(tuple(job_overrides()), tuple(sweep))


def labels(config: Mapping[str, Any], folder: Path, job: Job, kind: str = "train") -> Labels:
    """Return the labels of a run of ``config`` (a resolved training configuration) that writes to ``folder``.

    The group is the study with its scale, else the experiment, else the arguments of the multirun, else none. The job
    type is the arm of the study, else the overrides of a multirun's job without the seed, else ``kind``. The name is
    the overrides, else the folder's name.
    """
    named, study = _naming(job.overrides), config.get("study")
    chosen = [o.partition("=")[2].partition("/")[0] for o in job.overrides if o.startswith("experiment=")]
    sweep = " ".join(_naming(job.sweep))
    if study:
        group, arm = f"{study['name']}-{study['scale']}", study["arm"]
        tags = [study["name"], study["scale"], arm]
    else:
        group = chosen[-1] if chosen else sweep
        arm = " ".join(override for override in named if _key(override) != "seed") if job.sweep else ""
        tags = [config["name"], config["data"]["name"]]
    return Labels(
        name=_short(" ".join(named) or Path(folder).name, _NAME),
        group=_short(group, _NAME) or None,
        job_type=_short(arm or kind, _JOB_TYPE),
        tags=tuple(dict.fromkeys(_short(tag, _JOB_TYPE) for tag in tags)),
    )


def _naming(arguments: Sequence[str]) -> list[str]:
    return [a for a in arguments if "=" in a and not a.startswith("-") and _key(a).split(".")[0] not in _NOT_IN_NAME]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition("@")[0]


def _short(text: str, most: int) -> str:
    """Shorten a text to at most ``most`` characters; a digest keeps shortened texts distinct."""
    return text if len(text) <= most else f"{text[: most - 9]}-{digest(text)[:8]}"


def new_id() -> str:
    """Return a unique run id."""
    return uuid.uuid4().hex[:12]


def check(options: Mapping[str, Any]) -> None:
    """Check before long work that a run can be opened: valid mode, and a login. Raises UserError."""
    if options["mode"] not in (None, *MODES):
        raise UserError(
            f"logger.wandb.mode={options['mode']}: there is no such mode; {suggestions(str(options['mode']), MODES)}"
        )
    if _mode(options) in (None, "online"):
        log_in("logger=wandb", _OFFLINE_REMEDY)


def _mode(options: Mapping[str, Any]) -> str | None:
    """Return the requested mode. W&B itself reads the environment only once per process."""
    return options["mode"] or os.environ.get("WANDB_MODE")


def log_in(option: str, remedy: str) -> bool:
    """Check that there is a login, or prompt for one at a terminal; False if WANDB_MODE disables the check.

    Raises UserError; its message begins with ``option`` and ends with ``remedy``.
    """
    import wandb  # takes a second to import, which other runs need not spend

    try:
        return wandb.login(verify=False)
    except wandb.Error as error:
        raise UserError(_refused(option, error, remedy)) from error


def open_run(options: Mapping[str, Any], labels: Labels, folder: Path, config: Mapping[str, Any], run_id: str) -> Any:
    """Open the run ``run_id`` and return it; WANDB_RUN_ID and similar variables are ignored.

    If W&B knows the id, the run is resumed. Raises UserError if W&B refuses.
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
            reinit="create_new",  # do not reuse a run that an earlier job of this process left open
            dir=str(Path(folder).resolve()),  # absolute: W&B's process may have another working directory
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise UserError(_refused("logger=wandb", error, _OFFLINE_REMEDY)) from error


def _refused(option: str, error: Exception, remedy: str) -> str:
    return f"{option}: {' '.join(str(error).split())}; {remedy}"


def is_offline(run: Any) -> bool:
    """Return whether a run is stored only on disk."""
    return run.settings.mode in ("offline", "dryrun")


def address(run: Any) -> str | None:
    """Return the URL of a run, None if it has none."""
    return run.url if run.settings.mode == "online" else None


def sync_command(folder: Path, run_id: str) -> str:
    """Return the command that sends an offline run opened in ``folder`` to W&B, with all its sessions in order."""
    found = (Path(folder) / "wandb").glob(f"offline-run-*-{run_id}*")
    sessions = [path for path in found if re.fullmatch(rf".*-{re.escape(run_id)}(-\d+)?", path.name)]
    return shlex.join(["wandb", "sync", *map(str, sorted(sessions))])  # W&B numbers sessions of the same second
