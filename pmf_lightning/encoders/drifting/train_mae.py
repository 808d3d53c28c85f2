"""Train a small masked autoencoder on the run's data; it takes a minute or two and is cached.

It is for data without a published encoder, such as digits. Large encoders are trained by the train command
(model=mae_r256) instead, on all devices and with averaged weights.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.order import micro_batch_indices
from pmf_lightning.data.transforms import to_float
from pmf_lightning.encoders.trained_cache import load_or_train
from pmf_lightning.models.mae.network import MAE
from pmf_lightning.models.vit import init_weights
from pmf_lightning.objectives.base import Batch
from pmf_lightning.objectives.masked_autoencoder import MaskedAutoencoder
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import cache_root, digest
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.threads import fixed

VERSION = 1  # part of the cache key: increase it when the network or its training changes


@dataclass(frozen=True)
class MAESettings:
    """Settings of the autoencoder and its training; the numbers are in conf/drift_features.

    ``seed`` is not the run's seed, because runs are comparable only with the same encoder. ``patch``, ``base_channels``
    and ``blocks`` are those of MAEEncoder, ``cell`` to ``class_warmup`` those of MaskedAutoencoder. Training is
    ``steps`` steps of AdamW on ``batch`` images at ``lr``, with a warm-up of ``warmup_steps`` steps, a linear decay to
    0 over the last half, and gradient norms clipped at ``clip``.
    """

    seed: int
    patch: int
    base_channels: int
    blocks: Sequence[int]
    cell: int
    mask_fraction: Number
    class_weight: Number
    class_steps: int
    class_warmup: int
    steps: int
    batch: int
    lr: Number
    warmup_steps: int
    weight_decay: Number
    clip: Number

    def network(self, source: DataSource) -> MAE:
        """Return the untrained network, initialised from the seed; UserError if the sizes do not fit."""
        try:
            network = MAE(
                resolution=source.resolution,
                channels=source.channels,
                patch=self.patch,
                base_channels=self.base_channels,
                blocks=self.blocks,
                classes=source.classes,
            )
        except ValueError as error:
            raise UserError(f"feature encoder on data {source.name}: {error}") from error
        init_weights(network, lambda name: rng.generator(self.seed, "mae", name))
        return network

    def objective(self) -> MaskedAutoencoder:
        """Return the training objective; UserError for invalid numbers."""
        names = ("patch", "cell", "mask_fraction", "class_weight", "class_steps", "class_warmup", "steps")
        try:
            return MaskedAutoencoder(**{name: getattr(self, name) for name in names}, crop=None, flip=False)
        except ValueError as error:
            raise UserError(f"feature encoder: {error}") from error


def cached_mae(source: DataSource, settings: MAESettings, cache_dir: str | None) -> MAE:
    """Return the frozen autoencoder of ``source``'s training split, read from the cache folder or trained and cached.

    A damaged file is replaced, with a notice. Raises UserError if the sizes do not fit the data, the data are latents,
    training diverges, or the cache folder cannot be written.
    """
    if source.latents:
        raise UserError(
            f"{source.name} provides latents: the small feature encoder needs pixels; train one by "
            "model=mae_r256 and take drift_features=mae_run, or a released one, drift_features=mae_released"
        )
    folder = cache_root(cache_dir) / "encoders"
    folder.mkdir(exist_ok=True)
    parts = [str(list(value)) if isinstance(value, Sequence) else value for value in asdict(settings).values()]
    path = folder / f"{digest(VERSION, source.fingerprint(), source.classes, *parts)}.pt"
    return load_or_train(
        path, lambda: settings.network(source), lambda: train_mae(source, settings), "the feature encoder"
    )


@fixed(1)  # the order of sums, and so the last bits, depends on the number of threads
@torch.inference_mode(mode=False)  # Lightning evaluates in inference mode, in which tensors cannot be trained
@torch.enable_grad()
@torch.autocast("cpu", enabled=False)
def train_mae(source: DataSource, settings: MAESettings) -> MAE:
    """Train an autoencoder on the CPU, with a progress bar; return it frozen.

    The weights are bit-identical for any number of threads, given the same input, version of torch and kind of
    processor. Raises UserError if the sizes do not fit the data, or if training diverges.
    """
    network, objective, split = settings.network(source), settings.objective(), source.train()
    adam = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    bar = tqdm(range(settings.steps), "training the feature encoder", leave=False, disable=None)
    for step in bar:
        chosen = micro_batch_indices(len(split), settings.batch, settings.seed, step, rng.BatchRows())
        images, labels = split.batch(chosen)
        batch = Batch(to_float(images), labels)
        losses = objective(network, batch, objective.draw(batch, settings.seed, step))
        for group in adam.param_groups:
            group["lr"] = settings.lr * _rate(step, settings)
        adam.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        adam.step()
        if step % 10 == 0 or step == settings.steps - 1:
            error = losses.per_sample["loss_reconstruction"].mean() / batch.x[0].numel()
            bar.set_postfix({"error": f"{error:.4f}", "accuracy": f"{losses.distances['accuracy'].mean():.2f}"})
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise UserError(f"the feature encoder diverged at lr={settings.lr}: lower it")
    return network.requires_grad_(False).eval()


def _rate(step: int, settings: MAESettings) -> float:
    """Return the factor on the learning rate: linear warm-up, linear decay to 0 over the last half."""
    return min(1.0, (step + 1) / (settings.warmup_steps + 1), 2 * (settings.steps - step) / settings.steps)
