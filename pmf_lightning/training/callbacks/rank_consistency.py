"""Check before the first step that all devices have the same gradients and weights; stop the run if not."""

import torch
from lightning import Callback, LightningModule, Trainer

from pmf_lightning.distributed.dtensor import differences, is_dtensor
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number


class RankConsistencyCheck(Callback):
    """Compares, over devices, the norm of each gradient and the norm and the sum of each weight, once.

    If gradients are not averaged, or initial weights differ, every device trains a network of its own, with no other
    sign than worse images. Sharded weights and gradients (FSDP) exist once and are skipped. With one device nothing is
    compared.

    Args:
        tolerance: maximum difference between devices, relative to the norm over all weights or gradients.
    """

    def __init__(self, tolerance: Number):
        self.tolerance = tolerance
        self._done = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Compare before the first step of this session; raise UserError on all devices if they differ."""
        if self._done or trainer.world_size == 1:
            return
        self._done = True
        named = [(n, p) for n, p in pl_module.network.named_parameters() if p.requires_grad]
        named = [(name, p) for name, p in named if not is_dtensor(p)]
        weights = [p.detach() for _, p in named]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in named]
        for what, tensors in (("weight", weights), ("gradient", gradients)):
            distances = differences(tensors)
            if len(distances) and not (worst := distances.max()) <= self.tolerance:
                raise UserError(self._message(what, named[int(distances.argmax())][0], worst.item(), trainer))

    def _message(self, what: str, name: str, difference: float, trainer: Trainer) -> str:
        remedy = {
            "weight": "They must start equal: use the same seed, the same ckpt and the same code on all machines",
            "gradient": "They must be averaged: call the network inside training_step, through Lightning's strategy, "
            "and let every device see the same parameters",
        }[what]
        return (
            f"step {trainer.global_step + 1}: the {what}s of the {trainer.world_size} devices differ, most of all "
            f"{name}, by {difference:.1e} of the norm of all {what}s (sync_tolerance={self.tolerance:g}). {remedy}"
        )
