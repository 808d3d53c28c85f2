"""An objective that uses what the shipped ones do not: labels without images, a state, encoders and the whole batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from common import CLASSES, SHAPE, tiny_network
from lightning import Callback, Trainer
from torch import nn

from pmf_lightning.data.datamodule import LabelData
from pmf_lightning.objectives.base import ONE_DEVICE, EncoderRequest, Losses, ObjectiveBase
from pmf_lightning.optim.schedules import rate_factor
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.utils import rng

BATCH = 8


@dataclass(frozen=True)
class Noise:
    noise: torch.Tensor


@dataclass(frozen=True)
class MeanMatching(ObjectiveBase):
    """Pulls the mean features of generated images, over a running population, to a target."""

    data: ClassVar = "labels"
    encoder_request: ClassVar = EncoderRequest("encoder")
    samplers: ClassVar = ("one_step",)

    noise_scale: float = 1.0
    decay: float = 0.5
    joint: bool = False  # the loss of the mean over all rows, in place of a mean over rows

    @property
    def needs_global_batch(self):
        return self.joint

    def initial_state(self, network, encoders, seed):
        noise = rng.normal_images(seed, "fill", rows=torch.arange(4), shape=SHAPE)
        images = self.one_step(network, noise, torch.zeros(4, dtype=torch.long), 1.0)
        return {"mean": encoders(images).mean(0), "steps": torch.zeros((), dtype=torch.long)}

    def next_state(self, state, observed, step):
        mean = self.decay * state["mean"] + (1 - self.decay) * observed["features"].mean(0)
        return {"mean": mean, "steps": state["steps"] + 1}

    def draw(self, batch, seed, step, shard=None):
        rows = (shard or rng.BatchRows()).rows(len(batch.y))
        return Noise(rng.normal_images(seed, "noise", step, rows=rows, shape=batch.shape, device=batch.y.device))

    def __call__(self, network, batch, draws, encoders, state=None, devices=ONE_DEVICE):
        state = state or {"mean": torch.zeros(())}
        features = encoders(self.one_step(network, draws.noise, batch.y, 1.0))
        rows = devices.gather(features).mean(0) if self.joint else features
        mixed = self.decay * state["mean"] + (1 - self.decay) * rows
        return Losses((mixed - 1).square().mean(), {}, observed={"features": features.detach()})

    def counted(self):
        return self, lambda images: images.mean((2, 3))

    def one_step(self, network, noise, y, omega):
        return network(noise, {"label": y}, heads=("u",))["u"]


class Encoder(nn.Module):
    """Frozen features of images."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(SHAPE[0], 6, 3)
        with torch.no_grad():
            for name, weight in self.net.named_parameters():
                weight.copy_(torch.randn(weight.shape, generator=rng.generator("toy encoder", name)))
        self.requires_grad_(False)

    def forward(self, images):
        return self.net(images).tanh().mean((2, 3))


def toy_run(steps, folder, micro_batch=None, ckpt_path=None, devices=1, callback=None, **options):
    """Train the toy; return weights and state of this rank, and leave a checkpoint in ``folder``."""
    network = tiny_network(torch.float32, heads={"u": 1}, conditions={"label": {"kind": "class", "tokens": 2}})
    config = {"compile": False, "flip": False, "batch": BATCH}
    optimizer, constant = torch.optim.SGD, {"steps": 10, "warmup_fraction": 0, "decay_fraction": 0}
    module = GenerativeModule(
        network,
        MeanMatching(**options),
        lambda groups: optimizer(groups, lr=0.1),
        lambda step: rate_factor(step, **constant),
        0,
        config,
    )
    module.set_encoders(Encoder())
    data = LabelData(CLASSES, 0, BATCH, micro_batch, module.objective.class_weights)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=data.accumulation(devices),
        callbacks=[EMA([0.01], None, BATCH), callback or Callback()],
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(f"{folder}/{steps}.ckpt")
    weights = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    return weights, module.state
