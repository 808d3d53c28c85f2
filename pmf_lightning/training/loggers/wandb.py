"""Weights & Biases, with images seen as the x-axis and a run that goes on after a resume."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.tracking import wandb_runs
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write

KEPT = "wandb_run.json"  # in the run directory: which run is at home there


class WandbLogger(Logger):
    """One W&B run per training run, opened by ``WandbResume`` when training begins, on the first device alone.

    The run's id lies in the checkpoint and in the run directory, so that a resumed run goes on in the same place, and
    one that goes on elsewhere from the same checkpoint gets a place of its own. Steps are never passed to W&B, which
    drops points whose step went back; "images" is the axis instead.

    Args:
        options: project, entity, group, name and mode, as in conf/logger/wandb.yaml; None where W&B or we choose.
        folder: the run directory.
        batch: images per optimiser step, over all devices.
        config: the resolved configuration.
        run_id: the id in the checkpoint that training goes on from, if any.

    Raises UserError where no run could be opened: an unknown mode, no login.
    """

    def __init__(self, options: dict, folder: Path, batch: int, config: dict, run_id: str | None):
        super().__init__()
        self.options, self.folder, self.batch, self.config = options, Path(folder), batch, config
        self.labels = wandb_runs.labels(config, self.folder, wandb_runs.hydra_job())
        at_home = run_id is not None and self._at_home() == run_id
        self._id = run_id if at_home else wandb_runs.new_id()
        self._run: Any = None
        if rank_zero_only.rank == 0:
            wandb_runs.check(options)

    @property
    def name(self) -> str | None:
        """The project."""
        return self.options["project"]

    @property
    def version(self) -> str:
        """The id of the run; it travels in the checkpoint."""
        return self._id

    def _at_home(self) -> str | None:
        try:
            return read_json(self.folder / KEPT)["id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @rank_zero_only
    def open(self) -> None:
        """Open the run; raises UserError where W&B refuses."""
        self._run = wandb_runs.open_run(self.options, self.labels, self.folder, self.config, self._id)
        self._run.define_metric("*", step_metric="images")
        page = wandb_runs.address(self._run)
        with atomic_write(self.folder / KEPT) as draft:
            draft.write_text(json.dumps({"id": self._id, "url": page}, indent=2) + "\n")
        if page:
            print(f"  W&B: {page}")

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: the configuration went in at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send a row."""
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        self._run.log({**row, "images": (step + 1) * self.batch})

    @rank_zero_only
    def log_picture(self, name: str, path: Path, images: int) -> None:
        """Send a picture called "<what>/<weights>".

        All averages go by the name "<what>/averaged", so that runs with other half-lives stand beside each other.
        """
        import wandb

        what, _, weights = name.partition("/")
        key = name if weights == "raw" else f"{what}/averaged"
        picture = wandb.Image(str(path), caption=f"{weights}, {images:,} images")
        self._run.log({key: picture, "images": images})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that it is whole whatever comes next; Lightning says "failed" where an error ended it."""
        if self._run is None:
            return
        run, self._run = self._run, None
        run.finish(exit_code=0 if status == "success" else 1)
        if wandb_runs.is_offline(run):
            print(f"W&B has nothing of this run yet; send it: {wandb_runs.sync_command(self.folder, self._id)}")


class WandbResume(Callback):
    """Opens the W&B run when training begins, and puts its id into every checkpoint, as "wandb_run"."""

    def __init__(self, run_id: str):
        self.run_id = run_id

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open it now: from here on Lightning closes its loggers whatever happens, and devices know their number."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.open()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Write the id."""
        checkpoint["wandb_run"] = self.run_id
