"""Weights & Biases, with images seen as the x-axis and a run that goes on after a resume."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.errors import UserError


class WandbRun(Logger):
    """One W&B run per training run.

    The run's id lies in the checkpoint, so that a resumed run goes on in the same place. Steps are never passed to
    W&B, which drops points whose step went back; "images" is the axis instead.
    """

    def __init__(self, options: dict, folder: Path, batch: int, config: dict, run_id: str | None):
        super().__init__()
        import wandb  # a second of import time that other runs need not spend

        self.batch = batch
        try:
            self.run = wandb.init(
                project=options["project"],
                entity=options["entity"],
                group=options["group"],
                name=options["name"] or Path(folder).name,
                mode=options["mode"],
                id=run_id,
                resume="allow" if run_id else None,
                dir=str(folder),
                config=config,
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"logger=wandb: {' '.join(str(error).split())}; or logger.wandb.mode=offline") from error
        self.run.define_metric("*", step_metric="images")

    @property
    def name(self) -> str:
        """The project."""
        return self.run.project

    @property
    def version(self) -> str:
        """The id of the run; it travels in the checkpoint."""
        return self.run.id

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: the configuration went in at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send a row."""
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        self.run.log({**row, "images": (step + 1) * self.batch})

    @rank_zero_only
    def log_picture(self, name: str, path: Path, images: int) -> None:
        """Send a picture."""
        import wandb

        self.run.log({name: wandb.Image(str(path)), "images": images})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that the next job of a multirun opens its own."""
        self.run.finish(exit_code=0 if status == "success" else 1)


class RememberRun(Callback):
    """Puts the id of the W&B run into every checkpoint, as "wandb_run"."""

    def __init__(self, run_id: str):
        self.run_id = run_id

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Write the id."""
        checkpoint["wandb_run"] = self.run_id
