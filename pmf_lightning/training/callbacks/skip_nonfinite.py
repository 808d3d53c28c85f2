"""What happens to a step whose loss or gradient is not a finite number: it is skipped, counted, and not for ever."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm.auto import tqdm

from pmf_lightning.distributed.dtensor import total_norm
from pmf_lightning.pipeline.checkpoint_io import tensors
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.utils.errors import Diverged


class SkipNonFinite(Callback):
    """Logs the gradient norm ("grad_norm", before any clipping), and skips steps that would spoil the weights.

    A skipped step leaves weights and moments as they are, and the averages move on towards the weights. It counts as a
    step all the same, so that the next one has other images and other draws. The norm covers every device and
    micro-batch, and the loss is added up over them, so all devices decide alike. The price is that each step waits once
    for the device before the optimiser begins. ``skipped`` counts over the whole run (the log has it as
    "skipped_steps"), ``in_a_row`` since the last good step.

    Args:
        stop_after: so many skipped steps in a row end the run with Diverged.
        folder: the run directory, to name what to look at and where to go on.
        signals: the wish to stop, which all devices agree upon here: they add up the loss anyway.
    """

    def __init__(self, stop_after: int, folder: Path, signals: StopSignals):
        self.stop_after, self.folder, self.signals = stop_after, Path(folder), signals
        self.skipped = self.in_a_row = 0
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss of a micro-batch, on the device."""
        loss = loss.detach().clone()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Look at the gradients of the whole batch; take them away from the optimiser if they are no good."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = total_norm([weight.grad for weight in weights if weight.grad is not None])
        mine, self._loss = torch.cat((self._loss[None], self.signals.requests(self._loss))), None
        loss, *votes = trainer.strategy.reduce(mine, reduce_op="sum")
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
        if self.in_a_row >= self.stop_after:
            raise Diverged(
                f"step {step}: {what} is not finite, {self.in_a_row} steps in a row by now "
                f"(non_finite.stop_after={self.stop_after}); {self._last_good()}. {self._remedy()}"
            )
        if self.in_a_row == 1:
            _say(f"step {step}: {what} is not finite; skipped, weights unchanged ({self.skipped} skipped so far)")

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Refuse to write weights, averages or moments that are not finite, by raising Diverged."""
        for part, words in (("state_dict", "weights"), ("ema", "averages"), ("optimizer_states", "moments")):
            found = [n for n in tensors(checkpoint.get(part)) if n.is_floating_point() and n.numel()]
            good = not found or bool(get_total_norm(found, torch.inf).isfinite())
            if not trainer.strategy.broadcast(good):  # rank 0 writes, and may be the only one that has them whole
                raise Diverged(
                    f"step {trainer.global_step}: the {words} are not finite and are not saved; "
                    f"{self._last_good()}. {self._remedy()}"
                )

    def _last_good(self) -> str:
        path = self.folder / "checkpoints" / "last.ckpt"
        return f"the last good checkpoint is {path}" if path.is_file() else "there is no checkpoint yet"

    def _remedy(self) -> str:
        return (
            f"Look at du_dt by time in {self.folder / 'time_bins.png'}; then lower optimizer.lr or raise the precision "
            "(trainer.precision=32-true matmul_precision=highest), and go on with ckpt=last or start anew"
        )


@rank_zero_only
def _say(text: str) -> None:
    tqdm.write(text)
