"""The LightningModule of every objective: keyed draws, one call of the objective, logging. No formula lives here."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from pmf_lightning.data.pixels import to_float
from pmf_lightning.draws import Shard
from pmf_lightning.objectives.contract import Batch
from pmf_lightning.optim.groups import parameter_groups


class GenerativeModule(LightningModule):
    """A network, an objective and an optimiser.

    Args:
        network: the backbone; its weights are the only ones of the module.
        objective: a pure function (see objectives/contract.py) that also draws its random numbers from keys.
        optimizer: from parameter groups to a torch optimiser.
        rate_factor: from the step (from 0) to the factor on the learning rate.
        seed: key of all random draws of training.
        config: the resolved configuration as plain data; it travels in the checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Any,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        rate_factor: Callable[[int], float],
        seed: int,
        config: dict,
    ):
        super().__init__()
        self.network = network
        self.objective = objective
        self.seed = seed
        self.config = config
        self._optimizer = optimizer
        self._rate_factor = rate_factor

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimiser over the network's tagged parameters, and the schedule of its learning rate."""
        optimizer = self._optimizer(parameter_groups(self.network))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch: uint8 images [B,C,H,W] and labels [B]."""
        images, labels = batch
        batch = Batch(to_float(images), labels)
        draws = self.objective.draw(batch, self.seed, self.global_step, self._shard(batch_idx))
        # The raw network goes in: Lightning runs this method inside DDP's forward, so gradients are still averaged.
        losses = self.objective(self.network, batch, draws)
        for name, sums in losses.per_sample.items():
            mean = sums.mean() / batch.x[0].numel()
            self.log(name, mean, prog_bar=True, batch_size=len(labels), sync_dist=self.trainer.world_size > 1)
        return losses.total

    def _shard(self, batch_idx: int) -> Shard:
        """Return which rows of the global batch this rank's micro-batch holds; the data loader deals alike."""
        micro_batches, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
        return Shard(batch_idx % micro_batches * world + self.global_rank, micro_batches * world)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Let the configuration travel with the weights."""
        checkpoint["config"] = self.config
