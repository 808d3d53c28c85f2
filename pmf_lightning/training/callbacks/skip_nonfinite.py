"""Skip steps whose loss or gradient is not finite, count them, and end the run after too many in a row."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm.auto import tqdm

from pmf_lightning.distributed.collectives import sum_over_ranks
from pmf_lightning.distributed.dtensor import total_norm
from pmf_lightning.pipeline.checkpoint_io import tensors
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.utils.errors import Diverged


class SkipNonFinite(Callback):
    """Logs the gradient norm ("grad_norm", before any clipping), and skips steps with a non-finite loss or gradient.

    A skipped step leaves weights and moments unchanged; the EMA is still updated. It counts as a step, so that the next
    one has other images and other random numbers. The norm covers all devices and micro-batches, and the loss is summed
    over them, so all devices decide alike. The cost is one device synchronisation per step, before the optimiser.
    ``skipped`` counts over the complete run (logged as "skipped_steps"), ``in_a_row`` since the last good step.

    Args:
        max_in_a_row: number of skipped steps in a row that ends the run with Diverged.
        folder: the run directory, named in messages.
        signals: the requests to stop, which are summed over the devices together with the loss.
    """

    def __init__(self, max_in_a_row: int, folder: Path, signals: StopSignals):
        self.max_in_a_row, self.folder, self.signals = max_in_a_row, Path(folder), signals
        self.skipped = self.in_a_row = 0
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add up the losses of the micro-batches, on the device."""
        loss = loss.detach().clone()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Check loss and gradients of the full batch; remove the gradients if either is not finite."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = total_norm([weight.grad for weight in weights if weight.grad is not None])
        mine, self._loss = torch.cat((self._loss[None], self.signals.requests(self._loss))), None
        loss, *votes = sum_over_ranks(mine)
        finite_loss, finite_norm, *votes = torch.stack((loss.isfinite(), norm.isfinite(), *votes)).tolist()
        self.signals.decide(trainer, *votes)
        if finite_loss and finite_norm:
            self.in_a_row = 0
        else:
            what = "the gradient" if finite_loss else "the loss"
            self._skip(what, trainer, weights)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            pl_module.log_dict({"grad_norm": norm, "skipped_steps": float(self.skipped)})

    def _skip(self, what: str, trainer: Trainer, weights: list[Tensor]) -> None:
        step = trainer.global_step + 1
        for weight in weights:
            weight.grad = None
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= self.max_in_a_row:
            raise Diverged(
                f"step {step}: {what} is not finite, {self.in_a_row} steps in a row "
                f"(skip_nonfinite.max_in_a_row={self.max_in_a_row}); {self._last_good()}. {self._remedy()}"
            )
        if self.in_a_row == 1:
            _say(f"step {step}: {what} is not finite; skipped, weights unchanged ({self.skipped} skipped so far)")

    def state_dict(self) -> dict[str, int]:
        """Return the counters, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counters."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Raise Diverged instead of saving weights, averages or moments that are not finite."""
        for part, words in (("state_dict", "weights"), ("ema", "averages"), ("optimizer_states", "moments")):
            found = [n for n in tensors(checkpoint.get(part)) if n.is_floating_point() and n.numel()]
            good = not found or bool(get_total_norm(found, torch.inf).isfinite())
            if not trainer.strategy.broadcast(good):  # rank 0 writes, and may be the only one with full tensors
                raise Diverged(
                    f"step {trainer.global_step}: the {words} are not finite and are not saved; "
                    f"{self._last_good()}. {self._remedy()}"
                )

    @property
    def _last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def _last_good(self) -> str:
        return f"the last good checkpoint is {self._last}" if self._last.is_file() else "there is no checkpoint yet"

    def _remedy(self) -> str:
        resume = "resume with ckpt=last or " if self._last.is_file() else ""
        return (
            f"Look at du_dt by time in {self.folder / 'time_bins.png'}; then lower optimizer.lr or raise the precision "
            f"(trainer.precision=32-true matmul_precision=highest), and {resume}start a new run"
        )


@rank_zero_only
def _say(text: str) -> None:
    tqdm.write(text)
