"""Real runs for the tests of several processes: Lightning's Trainer, what happened in it noted on the way."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from lightning import Callback
from shrunk import backbone

from pmf_lightning import compose
from pmf_lightning.commands import train
from pmf_lightning.distributed.dtensor import full_tensor
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.utils import rng

SHORT = ["batch=16", "log_every_steps=1", "sample_grid.enabled=false", "metrics=none", "checkpoint.every_images=1600"]


@dataclass
class Run:
    """What a rank saw: gradients and weights by step (the first, and those that were asked for), and the losses."""

    gradients: dict[int, dict] = field(default_factory=dict)
    weights: dict[int, dict] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    barriers: list[int] = field(default_factory=list)  # of each micro-batch
    world_size: int = 1


class Notes(Callback):
    """Notes gradients of the first step, weights after the steps ``at``, and every loss."""

    def __init__(self, run: Run, at: tuple[int, ...], keep: dict[int, Path], barriers: list[None]):
        self.run, self.at, self.keep, self.barriers = run, at, keep, barriers

    def on_train_start(self, trainer, pl_module):
        self._note_weights(trainer.global_step, pl_module)

    def on_train_batch_start(self, *_):
        self.passed = len(self.barriers)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.run.gradients[1] = {n: full_tensor(p.grad).clone() for n, p in pl_module.network.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.run.barriers.append(len(self.barriers) - self.passed)
        step = trainer.global_step
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone() * trainer.accumulate_grad_batches)
        self.run.losses.append(loss.item())
        if step in self.at and step not in self.run.weights:
            self._note_weights(step, pl_module)
        if step in self.keep:
            last = next(callback for callback in trainer.callbacks if isinstance(callback, CheckpointWriter))
            last.save(trainer)
            if trainer.is_global_zero:
                shutil.copy(last.path, self.keep[step])

    def _note_weights(self, step, pl_module):
        self.run.weights[step] = {n: full_tensor(p.detach()).clone() for n, p in pl_module.network.named_parameters()}

    def on_train_end(self, trainer, pl_module):
        self.run.world_size = trainer.world_size


def fit(model: str, folder: str, *overrides: str, at=(), keep=None, more=(), finish=False) -> Run:
    """Train ``model`` in a fresh ``folder``, on as many processes as there are, and return what this one saw.

    The weights start off away from their zeros, so that every weight has a gradient from the first step on.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    devices = ["trainer.accelerator=cpu", f"trainer.devices={size}", f"run_dir={folder}"]
    cfg = compose([f"model={model}", *backbone(model), *SHORT, *devices, *overrides])
    run, barriers, originals = Run(), [], (train.Trainer.fit, train.finish, dist.barrier)

    def noting(trainer, module, **arguments):
        if arguments.get("ckpt_path") is None:
            _disturb(module.network)
        trainer.callbacks += [Notes(run, at, keep or {}, barriers), *more]
        originals[0](trainer, module, **arguments)

    def barrier(*arguments, **options):
        barriers.append(None)
        return originals[2](*arguments, **options)

    train.Trainer.fit, dist.barrier = noting, barrier
    if not finish:
        train.finish = lambda *_: {}  # no pictures in the end
    try:
        train.run(cfg)
    finally:
        train.Trainer.fit, train.finish, dist.barrier = originals
    return run


@torch.no_grad()
def _disturb(network) -> None:
    for name, weight in network.named_parameters():
        weight += 0.02 * torch.randn(weight.shape, generator=rng.generator("test", name))
