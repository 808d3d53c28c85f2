"""Several exponential moving averages of the network's weights at once, with half-lives in images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from pmf_lightning.config.validate import ema_names
from pmf_lightning.distributed.dtensor import (
    from_shard,
    is_dtensor,
    local_tensor,
    reshard,
    spread_like,
    to_cpu,
    unshard,
)
from pmf_lightning.optim.schedules import ema_beta
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.utils.host_memory import HostCopies
from pmf_lightning.utils.precision import Number


class EMA(OncePerStep):
    """Averages the trainable weights of ``module.network`` after every optimiser step.

    The averages are float32 or wider. The checkpoint stores them under "ema" by name ("500k" is a half-life of 500,000
    images). ``swapped(module, name)`` puts one in place of the weights. Of sharded weights (trainer=fsdp) each rank
    averages its shards during training; the checkpoint has full tensors.

    With ``device`` "cpu" beside weights on a GPU, the weights are copied to host memory once per step, while the next
    step computes, and averaged there before the weights change again. The host waits for the copy once per step, where
    it waits for SkipNonFinite anyway.

    Args:
        halflife_kimg: half-lives in thousands of images.
        rampup_ratio: upper bound of a half-life as a fraction of the images seen so far; None: no bound.
        batch: images per optimiser step, over all devices.
        device: the device of the averages; None: that of the weights.
    """

    def __init__(
        self, halflife_kimg: Sequence[Number], rampup_ratio: Number | None, batch: int, device: str | None = None
    ):
        self.half_lives = dict(zip(ema_names(halflife_kimg), (1000 * h for h in halflife_kimg), strict=True))
        self.rampup_ratio, self.batch, self.device = rampup_ratio, batch, device
        self.averages: dict[str, dict[str, Tensor]] = {}
        self._sharded: dict[str, Tensor] = {}  # the weights, which say how shards make full tensors
        self._copies = HostCopies()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialise each average with the checkpoint's, or else with the current weights."""
        weights = {name: value.detach() for name, value in _trainable(pl_module).items()}
        self._sharded = {name: value for name, value in weights.items() if is_dtensor(value)}
        for name in self.half_lives:
            known = self.averages.get(name, weights)
            self.averages[name] = {key: _average(known[key], value, self.device) for key, value in weights.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Update every average, once per optimiser step, or begin to copy the weights to the averages' device."""
        if not self.new_step(trainer):
            return
        weights = [local_tensor(value.detach()) for value in _trainable(pl_module).values()]
        if self.device in (None, weights[0].device.type):
            self._update(weights)
        else:
            self._copies.start(weights)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Update the averages of the step before, while the device is busy with the gradients of this one."""
        self._update_from_copies()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the averages of the last step, before the weights move off their device."""
        self._update_from_copies()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Save the averages; sharded ones are gathered to full tensors on rank 0."""
        self._update_from_copies()
        checkpoint["ema"] = self._gathered(trainer.is_global_zero) if self._sharded else self.averages

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Load the averages of a checkpoint; one that it lacks starts from its weights."""
        self.averages = {name: value for name, value in checkpoint["ema"].items() if name in self.half_lives}

    def gather(self) -> None:
        """Gather the averages to full tensors on the CPU, after training. A collective: all ranks must call it."""
        if self._sharded:
            self.averages, self._sharded = self._gathered(True), {}

    def _update(self, weights: Sequence[Tensor]) -> None:
        for name, half_life in self.half_lives.items():
            beta = ema_beta(self.step * self.batch, self.batch, half_life, self.rampup_ratio)
            averages = list(self.averages[name].values())
            torch._foreach_lerp_(averages, [w.to(a.dtype) for w, a in zip(weights, averages, strict=True)], 1 - beta)

    def _update_from_copies(self) -> None:
        if (weights := self._copies.finish()) is not None:
            self._update(weights)

    def _gathered(self, keep: bool) -> dict[str, dict[str, Tensor | None]]:
        return {
            name: {key: to_cpu(from_shard(value, self._sharded[key]), keep) for key, value in values.items()}
            for name, values in self.averages.items()
        }

    @contextmanager
    def swapped(self, module: LightningModule, name: str) -> Iterator[None]:
        """Context manager that replaces the weights by the average ``name``; "raw" keeps them.

        If the weights are sharded, all ranks must enter, and each has the full tensors inside.
        """
        if name == "raw":
            with _gathered_inside(module.network):
                yield
            return
        self._update_from_copies()
        reshard(module.network)
        weights = {key: local_tensor(value.detach()) for key, value in _trainable(module).items()}
        raw = {key: value.clone() for key, value in weights.items()}
        try:
            _copy(self.averages[name], weights)
            with _gathered_inside(module.network):
                yield
        finally:
            _copy(raw, weights)


def _trainable(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.network.named_parameters() if value.requires_grad}


def _average(start: Tensor, weight: Tensor, device: str | None) -> Tensor:
    """Return a copy of this rank's part of ``start``, in float32 or wider; ``device`` None: that of ``weight``."""
    part = local_tensor(spread_like(start.detach(), weight))
    return part.to(device or weight.device, torch.promote_types(weight.dtype, torch.float32), copy=True)


@contextmanager
def _gathered_inside(network: nn.Module) -> Iterator[None]:
    """Gather sharded weights inside the block and free them after it. They are resharded first, since they changed."""
    reshard(network)
    unshard(network)
    try:
        yield
    finally:
        reshard(network)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for key, value in target.items():
        value.copy_(source[key])
