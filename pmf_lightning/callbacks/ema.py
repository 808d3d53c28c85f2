"""Several exponential moving averages of the network's weights at once, with half-lives in images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from pmf_lightning.checks import ema_names
from pmf_lightning.optim.ema_beta import ema_beta
from pmf_lightning.precision import Number


class WeightAverages(Callback):
    """Averages the trainable weights of ``module.network`` after every optimiser step.

    They live in float32 (or wider) beside the network, travel in the checkpoint under "ema" by name ("500k" is a
    half-life of 500,000 images), and are swapped in with ``swapped(module, name)``.

    Args:
        half_lives_kimg: half-lives in thousands of images.
        ramp: a half-life is at most this share of the images seen so far; None: no such bound.
        batch: images per optimiser step, over all devices.
    """

    def __init__(self, half_lives_kimg: Sequence[Number], ramp: Number | None, batch: int):
        self.half_lives = dict(zip(ema_names(half_lives_kimg), (1000 * h for h in half_lives_kimg), strict=True))
        self.ramp, self.batch = ramp, batch
        self.averages: dict[str, dict[str, Tensor]] = {}
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights at hand, or go on with those of the checkpoint."""
        self._step = trainer.global_step
        weights = _trainable(pl_module)
        for name in self.half_lives:
            known = self.averages.get(name, weights)
            self.averages[name] = {
                key: known[key].detach().to(value.device, torch.promote_types(value.dtype, torch.float32), copy=True)
                for key, value in weights.items()
            }

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        """Move every average towards the weights, once per optimiser step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = [value.detach() for value in _trainable(pl_module).values()]
        for name, half_life in self.half_lives.items():
            beta = ema_beta(self._step * self.batch, self.batch, half_life, self.ramp)
            averages = list(self.averages[name].values())
            torch._foreach_lerp_(averages, [w.to(a.dtype) for w, a in zip(weights, averages, strict=True)], 1 - beta)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Put the averages beside the weights."""
        checkpoint["ema"] = self.averages

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Take the averages of a checkpoint; one that it lacks starts from its weights."""
        self.averages = {name: value for name, value in checkpoint["ema"].items() if name in self.half_lives}

    @contextmanager
    def swapped(self, module: LightningModule, name: str) -> Iterator[None]:
        """Put the average ``name`` in the place of the weights for a while; "raw" changes nothing."""
        if name == "raw":
            yield
            return
        weights = _trainable(module)
        raw = {key: value.detach().clone() for key, value in weights.items()}
        try:
            _copy(self.averages[name], weights)
            yield
        finally:
            _copy(raw, weights)


def _trainable(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.network.named_parameters() if value.requires_grad}


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in target.items():
            value.copy_(source[key])
