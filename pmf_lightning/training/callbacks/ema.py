"""Several exponential moving averages of the network's weights at once, with half-lives in images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pmf_lightning.config.validate import ema_names
from pmf_lightning.distributed.dtensor import local_tensor, reshard, spread_like, to_cpu, unshard
from pmf_lightning.optim.schedules import ema_beta
from pmf_lightning.training.callbacks.once_per_step import OncePerStep
from pmf_lightning.utils.precision import Number


class EMA(OncePerStep):
    """Averages the trainable weights of ``module.network`` after every optimiser step.

    The averages are float32 or wider, on the device of the weights. The checkpoint stores them under "ema" by name
    ("500k" is a half-life of 500,000 images). ``swapped(module, name)`` puts one in place of the weights. Sharded
    weights (trainer=fsdp) have sharded averages during training; the checkpoint has full tensors.

    Args:
        halflife_kimg: half-lives in thousands of images.
        rampup_ratio: upper bound of a half-life as a fraction of the images seen so far; None: no bound.
        batch: images per optimiser step, over all devices.
    """

    def __init__(self, halflife_kimg: Sequence[Number], rampup_ratio: Number | None, batch: int):
        self.half_lives = dict(zip(ema_names(halflife_kimg), (1000 * h for h in halflife_kimg), strict=True))
        self.rampup_ratio, self.batch = rampup_ratio, batch
        self.averages: dict[str, dict[str, Tensor]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialise each average with the checkpoint's, or else with the current weights."""
        weights = _trainable(pl_module)
        for name in self.half_lives:
            known = self.averages.get(name, weights)
            self.averages[name] = {key: _average(known[key], value) for key, value in weights.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Update every average, once per optimiser step."""
        if not self.new_step(trainer):
            return
        weights = [local_tensor(value.detach()) for value in _trainable(pl_module).values()]
        for name, half_life in self.half_lives.items():
            beta = ema_beta(self.step * self.batch, self.batch, half_life, self.rampup_ratio)
            averages = [local_tensor(value) for value in self.averages[name].values()]
            torch._foreach_lerp_(averages, [w.to(a.dtype) for w, a in zip(weights, averages, strict=True)], 1 - beta)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Save the averages; sharded ones are gathered to full tensors on rank 0."""
        checkpoint["ema"] = self._gathered(trainer.is_global_zero) if self._spread else self.averages

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Load the averages of a checkpoint; one that it lacks starts from its weights."""
        self.averages = {name: value for name, value in checkpoint["ema"].items() if name in self.half_lives}

    def gather(self) -> None:
        """Gather the averages to full tensors on the CPU, after training. A collective: all ranks must call it."""
        if self._spread:
            self.averages = self._gathered(True)

    @property
    def _spread(self) -> bool:
        return any(isinstance(value, DTensor) for values in self.averages.values() for value in values.values())

    def _gathered(self, keep: bool) -> dict[str, dict[str, Tensor | None]]:
        return {name: {key: to_cpu(v, keep) for key, v in values.items()} for name, values in self.averages.items()}

    @contextmanager
    def swapped(self, module: LightningModule, name: str) -> Iterator[None]:
        """Context manager that replaces the weights by the average ``name``; "raw" keeps them.

        If the weights are sharded, all ranks must enter, and each has the full tensors inside.
        """
        if name == "raw":
            with _gathered_inside(module.network):
                yield
            return
        reshard(module.network)
        weights = _trainable(module)
        raw = {key: value.detach().clone() for key, value in weights.items()}
        try:
            _copy(self.averages[name], weights)
            with _gathered_inside(module.network):
                yield
        finally:
            _copy(raw, weights)


def _trainable(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.network.named_parameters() if value.requires_grad}


def _average(start: Tensor, weight: Tensor) -> Tensor:
    """Return a copy of ``start`` in float32 or wider, with the device and sharding of ``weight``."""
    like = weight.detach()
    return spread_like(start.detach(), like).to(torch.promote_types(like.dtype, torch.float32), copy=True)


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
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(source[key])
