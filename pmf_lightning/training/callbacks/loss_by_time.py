"""Log squared errors and the rms of du/dt in bins of t: a mean over a batch hides at which t they are large.

The u-loss of MeanFlow spikes at large t, with du/dt, long before the run fails, while its mean and loss_v look calm.
"""

from collections.abc import Callable, Collection
from functools import partial

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from pmf_lightning.utils.errors import Diverged


class BinnedMeans:
    """Means of one number per row over equal bins of t in [0, 1], gathered over any number of batches.

    Bin i holds lower <= t < upper; the last one also holds t = 1. The sums stay on the device of the numbers, so that
    adding to them waits for nothing. A number that is not finite spoils its own bin and no other.

    Args:
        bins: how many.
        roots: the names whose numbers are squares of which the root of the mean is wanted.

    Raises ValueError for fewer bins than one.
    """

    def __init__(self, bins: int, roots: Collection[str] = ()):
        if bins < 1:
            raise ValueError(f"bins={bins}: at least one is needed")
        self.edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        self.labels = [f"t{low:.3g}-{high:.3g}" for low, high in self.edges.unfold(0, 2, 1).tolist()]
        self.roots = frozenset(roots)
        self.tables: dict[str, Float[Tensor, "2 bins"]] = {}  # by name: sums, and how many rows they are of

    def add(self, name: str, t: Float[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Put ``values`` of rows at times ``t`` into the bins of ``name``."""
        place = torch.bucketize(t, self.edges[1:-1].to(t), right=True).to(values.device, non_blocking=True)
        if name not in self.tables:
            self.tables[name] = torch.zeros(2, len(self.labels), device=values.device)
        values = values.detach().float()
        self.tables[name].index_add_(1, place, torch.stack((values, torch.ones_like(values))))

    def take(self, total: Callable[[Tensor], Tensor] = lambda tables: tables) -> dict[str, Float[Tensor, "2 bins"]]:
        """Return the tables by name, on the CPU, and begin anew; ``total`` adds them up over all devices."""
        tables, self.tables = self.tables, {}
        if not tables:
            return {}
        names = sorted(tables)  # the same order on every device
        sums = total(torch.stack([tables[name] for name in names]))
        return dict(zip(names, sums.cpu(), strict=True))

    def means(self, tables: dict[str, Float[Tensor, "2 bins"]]) -> dict[str, float]:
        """Return "name/bin" -> mean, or root of the mean; a bin that no row fell into is left out."""
        found = {}
        for name, (sums, counts) in tables.items():
            means = (sums / counts).sqrt() if name in self.roots else sums / counts
            full = zip(self.labels, means.tolist(), counts.tolist(), strict=True)
            found |= {f"{name}/{label}": mean for label, mean, count in full if count}
        return found


class LossByTime(Callback):
    """Logs "loss_u/t0.2-0.4" and the like: means over all rows since the last log whose t lies in the bin.

    One step has few rows in a bin; all of a window, over micro-batches and devices, say more. The values come with what
    the training step returns: ``outputs["by_time"]`` is name -> (t [n], squares per pixel [n]) of the rows that count.
    The device is asked for them once per log. A window cut by a stop goes on after it: its sums are in the checkpoint.

    Args:
        bins: equal bins of t in [0, 1].
        every_steps: how often to log.
    """

    def __init__(self, bins: int, every_steps: int):
        self.bins, self.every_steps = BinnedMeans(bins, roots=["du_dt"]), every_steps
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
