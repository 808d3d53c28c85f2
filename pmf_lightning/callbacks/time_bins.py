"""The log by time: loss_u, loss_v and the rms of du/dt in bins of t, beside their means over all rows."""

from functools import partial

import torch
from lightning import Callback, LightningModule, Trainer

from pmf_lightning.diagnostics import TimeBins
from pmf_lightning.errors import Diverged


class TimeBinLog(Callback):
    """Logs "loss_u/t0.2-0.4" and the like: means over all rows since the last log whose t lies in the bin.

    One step has few rows in a bin; all of a window, over micro-batches and devices, say more. The values come with what
    the training step returns: ``outputs["by_time"]`` is name -> (t [n], squares per pixel [n]) of the rows that count.
    The device is asked for them once per log. A window cut by a stop goes on after it: its sums are in the checkpoint.

    Args:
        bins: equal bins of t in [0, 1].
        every_steps: how often to log.
    """

    def __init__(self, bins: int, every_steps: int):
        self.bins, self.every_steps = TimeBins(bins, roots=["du_dt"]), every_steps
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: dict, *_) -> None:
        """Take a micro-batch in, and log when it is time."""
        for name, (t, values) in outputs["by_time"].items():
            self.bins.add(name, t, values)
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if step % self.every_steps == 0:
            self._log(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the window in which training diverged, which all devices notice in the same step."""
        if isinstance(exception, Diverged):
            self._log(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Put the sums of all devices into the checkpoint; from here on the first device keeps them."""
        tables = checkpoint["time_bins"] = self._take(trainer)
        self._keep(trainer, tables)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Go on with the window of a checkpoint, unless it had other bins."""
        tables = checkpoint.get("time_bins", {})
        if all(table.shape[1] == len(self.bins.labels) for table in tables.values()):
            self._keep(trainer, tables)

    def _log(self, trainer: Trainer) -> None:
        numbers = self.bins.means(self._take(trainer))
        for logger in trainer.loggers if numbers else ():
            # Not by pl_module.log, which would repeat the last value of a bin that now has no rows.
            logger.log_metrics(numbers, trainer.global_step - 1)

    def _take(self, trainer: Trainer) -> dict:
        return self.bins.take(partial(trainer.strategy.reduce, reduce_op="sum"))

    def _keep(self, trainer: Trainer, tables: dict) -> None:
        """Let the first device have the sums; the others have zeros, since all must have the same names to add up."""
        mine, device = (torch.clone if trainer.is_global_zero else torch.zeros_like), trainer.strategy.root_device
        self.bins.tables = {name: mine(table).to(device) for name, table in tables.items()}
