"""Post-training of tiny networks: linear encoders in a battery, generators of each kind of sampler, and a real run."""

from functools import partial
from pathlib import Path

import torch
import yaml
from common import CLASSES, CONDITIONS, SHAPE, normal, objective, tiny_network
from lightning import Callback, Trainer
from torch import Tensor

from pmf_lightning import Drifting, JiT
from pmf_lightning.config.compose import CONF
from pmf_lightning.data.datamodule import LabelData
from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.battery import FEATURES, Battery
from pmf_lightning.objectives.base import LabelBatch
from pmf_lightning.objectives.discrepancies.choices import Frechet
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.objectives.distribution_matching import DistributionMatching
from pmf_lightning.optim.schedules import rate_factor
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.training.callbacks.ema import EMA

LABEL = {"label": {"kind": "class", "tokens": 2}}
STYLE = {"kind": "style", "tokens": 1, "codes": 3, "rows": 4}
BATCH, WIDTH, REAL = 12, 4, 60
GATED = yaml.safe_load((CONF / "controller" / "gated.yaml").read_text())
FRECHET = {"population": "ema", "rows": 24, "beta": 0.9, "eps": 0.01}

# The generator of each sampler, with the conditions of its network.
GENERATORS = {
    "average": (objective, CONDITIONS),
    "heun": (
        lambda: JiT(prediction="x", loss="v", noise_scale=2.0, P_mean=0.8, P_std=0.8, label_dropout=0.1, t_clip=0.05),
        {**LABEL, "t": {"kind": "scalar", "tokens": 1}},
    ),
    "one_step": (
        lambda: Drifting(
            **{"samples_per_label": 3, "noise_scale": 0.5, "alpha_max": 4.0, "alpha_power": 3.0},
            **{"unguided_fraction": 0.0, "temperatures": [0.2], "attraction": 1.0, "repulsion": 1.0},
            **{"normalisation": "both", "affinity_floor": 1e-6, "style_codes": 3, "style_values": 4},
        ),
        {**LABEL, "alpha": {"kind": "scalar", "tokens": 1}, "style": STYLE},
    ),
}


class Linear(Encoder):
    """Tanh of a linear map of the pixels."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64):
        super().__init__()
        pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.weight = torch.nn.Parameter(normal("encoder", name, shape=(pixels, WIDTH), dtype=dtype) / pixels**0.5)
        self.freeze()

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: (images.flatten(1) @ self.weight).tanh()}


def real(name: str, rows: int = REAL, **changes) -> RealFeatures:
    """Rows that depend on their label, and as many held-out ones."""
    labels = torch.arange(rows) % CLASSES
    centres = normal("centres", name, shape=(CLASSES, WIDTH))
    parts = {
        split: centres[labels] + 0.3 * normal("real", split, name, shape=(rows, WIDTH)) for split in ("train", "val")
    }
    both = {"rows": parts["train"], "labels": labels, "held_out": parts["val"], "held_out_labels": labels}
    return RealFeatures(name, rows, **{**both, **changes})


def battery(law: DistributionMatching, dtype: torch.dtype = torch.float64) -> Battery:
    """The encoders of an objective with their targets."""
    made = Battery({name: Linear(name, dtype) for name in law.encoders})
    made.targets = {name: law.target(real(name), CLASSES).to("cpu") for name in law.encoders}
    return made


def matching(sampler: str = "average", **changes) -> DistributionMatching:
    numbers = {"name": "test", "encoders": ("a", "b"), "weights": {}, "controller": None, "joint": None}
    guidance = {"omega": 2.0, "t_min": 0.1, "t_max": 0.8, "clamp": False, "batch": BATCH, "micro_batch": None}
    discrepancy = {"discrepancy": Frechet(**FRECHET)} if "discrepancy" not in changes else {}
    return DistributionMatching(
        **{"generator": GENERATORS[sampler][0](), **numbers, **guidance, **discrepancy, **changes}
    )


class Wide(torch.nn.Module):
    """A network that computes in float64, from noise that is drawn in float32."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner
        self.classes, self.channels, self.resolution = inner.classes, inner.channels, inner.resolution

    def forward(self, image: Tensor, *rest, **options) -> dict[str, Tensor]:
        return self.inner(image.double(), *rest, **options)


def network(sampler: str = "average", dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    made = tiny_network(dtype, heads={"u": 1}, conditions=GENERATORS[sampler][1])
    return Wide(made) if dtype == torch.float64 else made


def label_batch(rows: int = BATCH) -> LabelBatch:
    return LabelBatch(torch.arange(rows) % CLASSES, SHAPE)


class Gradients(Callback):
    """The gradients of every step, and the distances."""

    def __init__(self):
        self.gradients, self.losses = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.network.named_parameters()
        self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())


def matching_run(steps: int, folder: str, devices: int = 1, ckpt: str | None = None, **changes):
    """Train in float32 as the train command does; return gradients by step, losses, weights and state."""
    law, net, noted = matching(**changes), network(dtype=torch.float32), Gradients()
    config = {"compile": False, "flip": False, "batch": BATCH}
    rate = partial(rate_factor, steps=10, warmup_fraction=0, decay_fraction=0)
    module = GenerativeModule(net, law, lambda groups: torch.optim.AdamW(groups, lr=1e-3), rate, 0, config)
    module.set_encoders(battery(law, torch.float32))
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": devices, "max_steps": steps, "max_epochs": -1},
        callbacks=[EMA([0.01], None, BATCH), noted],
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=LabelData(CLASSES, 0, BATCH, None), ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(Path(folder) / f"{steps}.ckpt")
    weights = {name: value.detach().clone() for name, value in net.named_parameters()}
    return noted.gradients, noted.losses, weights, dict(module.state)
