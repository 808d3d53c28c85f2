"""Log squared errors and the rms of du/dt in bins of t: a mean over a batch hides at which t they are large.

The u-loss of MeanFlow spikes at large t, with du/dt, long before the run fails; its mean and loss_v do not show it.
"""

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from pmf_lightning.distributed.collectives import sum_over_ranks
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.utils.errors import Diverged


class BinnedMeans:
    """Means of one number per row over equal bins of t in [0, 1], accumulated over any number of batches.

    Bin i holds lower <= t < upper; the last one also holds t = 1. The sums stay on the device of the numbers, so that
    adding needs no synchronisation. A number that is not finite affects only its own bin.

    Args:
        bins: number of bins.
        roots: names whose numbers are squares; their root mean square is returned.

    Raises ValueError for fewer than one bin.
    """

    def __init__(self, bins: int, roots: Collection[str] = ()):
        if bins < 1:
            raise ValueError(f"bins={bins}: at least one is needed")
        self.edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        self.labels = [f"t{low:.3g}-{high:.3g}" for low, high in self.edges.unfold(0, 2, 1).tolist()]
        self.roots = frozenset(roots)
        self.tables: dict[str, Float[Tensor, "2 bins"]] = {}  # by name: sums and row counts

    def add(self, name: str, t: Float[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Add ``values`` of rows at times ``t`` to the bins of ``name``."""
        place = torch.bucketize(t, self.edges[1:-1].to(t), right=True).to(values.device, non_blocking=True)
        if name not in self.tables:
            self.tables[name] = torch.zeros(2, len(self.labels), device=values.device)
        values = values.detach().float()
        self.tables[name].index_add_(1, place, torch.stack((values, torch.ones_like(values))))

    def take(self, total: Callable[[Tensor], Tensor] = lambda tables: tables) -> dict[str, Float[Tensor, "2 bins"]]:
        """Return the tables by name, on the CPU, and reset them; ``total`` sums them over all devices."""
        tables, self.tables = self.tables, {}
        if not tables:
            return {}
        names = sorted(tables)  # the same order on every device
        sums = total(torch.stack([tables[name] for name in names]))
        return dict(zip(names, sums.cpu(), strict=True))

    def means(self, tables: dict[str, Float[Tensor, "2 bins"]]) -> dict[str, float]:
        """Return "name/bin" -> mean, or root mean square for ``roots``; empty bins are left out."""
        found = {}
        for name, (sums, counts) in tables.items():
            means = (sums / counts).sqrt() if name in self.roots else sums / counts
            full = zip(self.labels, means.tolist(), counts.tolist(), strict=True)
            found |= {f"{name}/{label}": mean for label, mean, count in full if count}
        return found


class LossByTime(OncePerStep):
    """Logs "loss_u/t0.2-0.4" and the like: means over all rows since the last log whose t lies in the bin.

    One step has few rows per bin, so the means cover all steps since the last log, all micro-batches and all devices.
    The training step returns the values: ``outputs["by_time"]`` is name -> (t [n], squares per pixel [n]) of the rows
    that count. They are copied to the CPU once per log. The sums of an unfinished window are saved in the checkpoint.

    Args:
        bins: number of equal bins of t in [0, 1].
        every_steps: optimiser steps between logs.
    """

    def __init__(self, bins: int, every_steps: int):
        self.bins, self.every_steps = BinnedMeans(bins, roots=["du_dt"]), every_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: dict, *_) -> None:
        """Add a micro-batch, and log if due."""
        for name, (t, values) in outputs["by_time"].items():
            self.bins.add(name, t, values)
        if self.new_step(trainer) and self.step % self.every_steps == 0:
            self._log(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the window in which training diverged; all devices raise Diverged in the same step."""
        if isinstance(exception, Diverged):
            self._log(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Save the sums over all devices; from here on rank 0 has these totals."""
        tables = checkpoint["time_bins"] = self._take()
        self._keep(trainer, tables)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Restore the window of a checkpoint, unless it has other bins."""
        tables = checkpoint.get("time_bins", {})
        if all(table.shape[1] == len(self.bins.labels) for table in tables.values()):
            self._keep(trainer, tables)

    def _log(self, trainer: Trainer) -> None:
        numbers = self.bins.means(self._take())
        for logger in trainer.loggers if numbers else ():
            # pl_module.log would repeat the last value of a bin that now has no rows.
            logger.log_metrics(numbers, trainer.global_step - 1)

    def _take(self) -> dict:
        return self.bins.take(sum_over_ranks)

    def _keep(self, trainer: Trainer, tables: dict) -> None:
        """Set the sums on rank 0 and zeros on the others: the reduction needs the same names on all ranks."""
        mine, device = (torch.clone if trainer.is_global_zero else torch.zeros_like), trainer.strategy.root_device
        self.bins.tables = {name: mine(table).to(device) for name, table in tables.items()}
