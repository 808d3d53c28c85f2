"""Weights & Biases logger with images seen as the x-axis; a resumed run continues its W&B run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.tracking import wandb_runs
from pmf_lightning.training.settings import LoggedRun
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write

RUN_FILE = "wandb_run.json"  # in the run directory: the W&B run of this directory


class WandbLogger(Logger):
    """One W&B run per training run. ``WandbResume`` opens it when training begins, on rank 0 only.

    The run's id is stored in the checkpoint and in the run directory. A run resumed in its directory continues the W&B
    run; a run in another directory from the same checkpoint gets a new one. Steps are not passed to W&B, which drops
    points whose step decreases; the axis is "images".

    Args:
        project, entity, group, name, mode: see conf/logger/wandb.yaml; None for a default.
        run: the training run.

    Raises UserError if no run can be opened: an unknown mode, or no login.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        name: str | None,
        mode: str | None,
        *,
        run: LoggedRun,
    ):
        super().__init__()
        self.options = {"project": project, "entity": entity, "group": group, "name": name, "mode": mode}
        self.folder, self.batch, self.config = run.folder, run.batch, run.config
        self.labels = wandb_runs.labels(self.config, self.folder, wandb_runs.hydra_job())
        at_home = run.wandb_run is not None and self._at_home() == run.wandb_run
        self._id = run.wandb_run if at_home else wandb_runs.new_id()
        self._run: Any = None
        self._step = 0  # the last step that was logged
        if rank_zero_only.rank == 0:
            wandb_runs.check(self.options)

    @property
    def name(self) -> str | None:
        """The W&B project."""
        return self.options["project"]

    @property
    def version(self) -> str:
        """The id of the run, which is saved in the checkpoint."""
        return self._id

    def _at_home(self) -> str | None:
        try:
            return read_json(self.folder / RUN_FILE)["id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @rank_zero_only
    def open(self) -> None:
        """Open the run; raises UserError if W&B refuses."""
        self._run = wandb_runs.open_run(self.options, self.labels, self.folder, self.config, self._id)
        self._run.define_metric("*", step_metric="images")
        page = wandb_runs.address(self._run)
        with atomic_write(self.folder / RUN_FILE) as draft:
            draft.write_text(json.dumps({"id": self._id, "url": page}, indent=2) + "\n")
        if page:
            print(f"  W&B: {page}")

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: the configuration is sent when the run opens."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send a row of metrics; without a step, as a user's callback may log, it belongs to the last one."""
        self._step = self._step if step is None else step
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        self._run.log({**row, "images": (self._step + 1) * self.batch})

    @rank_zero_only
    def log_picture(self, name: str, path: Path, images: int, columns: Sequence[str] | None = None) -> None:
        """Send an image called "<what>/<weights>"; the caption names its ``columns``.

        All averages are logged as "<what>/averaged", so that runs with other half-lives appear in one panel.
        """
        import wandb

        what, _, weights = name.partition("/")
        key = name if weights == "raw" else f"{what}/averaged"
        titles = f"; columns: {', '.join(columns)}" if columns else ""
        picture = wandb.Image(str(path), caption=f"{weights}, {images:,} images{titles}")
        self._run.log({key: picture, "images": images})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that it is complete on W&B. Lightning passes "failed" after an error."""
        if self._run is None:
            return
        run, self._run = self._run, None
        run.finish(exit_code=0 if status == "success" else 1)
        if wandb_runs.is_offline(run):
            print(f"W&B has no data of this run yet; upload it: {wandb_runs.sync_command(self.folder, self._id)}")


class WandbResume(Callback):
    """Opens the W&B run when training begins, and saves its id in every checkpoint, as "wandb_run"."""

    def __init__(self, run_id: str):
        self.run_id = run_id

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the run. From here on Lightning finalizes its loggers after any error, and the rank is known."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.open()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Save the id."""
        checkpoint["wandb_run"] = self.run_id
