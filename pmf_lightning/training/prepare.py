"""Check the inputs of a run; build its datamodule and the frozen networks that its loss and image grids need."""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.queues.datamodule import DriftingData, QueueSettings
from pmf_lightning.encoders.perceptual.build import make_features
from pmf_lightning.pipeline.build import make_part
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.utils.errors import UserError


def check_inputs(cfg: DictConfig, source: DataSource) -> None:
    """Check that flips, crops and the decoder fit the data (pixels or latents); raises UserError."""
    augments = "mirror" in cfg.objective  # only the autoencoder's objective has it
    if cfg.flip and augments and cfg.objective.mirror:
        raise UserError("flip=true objective.mirror=true: images would be mirrored twice; set flip=false")
    if not getattr(source, "latents", False):
        return
    if cfg.decoder is None:
        raise UserError(f"decoder=null: {source.name} hands out latents, which the decoder normalises; leave it out")
    if cfg.flip:
        raise UserError(
            f"flip=true: {source.name} hands out latents, and a mirrored latent is not the latent of the mirrored "
            "image; set flip=false"
        )
    if augments and (cfg.objective.crop is not None or cfg.objective.mirror):
        raise UserError(
            f"objective.crop, objective.mirror: {source.name} hands out latents, and a cropped or mirrored latent is "
            "not that of the cropped or mirrored image; set objective.crop=null objective.mirror=false"
        )


def make_data(cfg: DictConfig, source: DataSource) -> ImageData | DriftingData:
    """Build the datamodule: single images, or positives and negatives per class for Drifting; raises UserError."""
    if "queues" not in cfg:
        return ImageData(source, cfg.seed, cfg.batch, cfg.micro_batch, cfg.workers)
    if cfg.micro_batch is not None:
        raise UserError(
            f"micro_batch={cfg.micro_batch}: the loss of {cfg.name} has means over the whole batch; leave it out, or "
            "set a smaller batch"
        )
    if cfg.batch % cfg.objective.generated:
        raise UserError(
            f"batch={cfg.batch}: it is a number of labels times objective.generated={cfg.objective.generated}; set a "
            "multiple"
        )
    labels = cfg.batch // cfg.objective.generated
    return DriftingData(source, cfg.seed, QueueSettings(labels=labels, **cfg.queues), cfg.workers)


def make_training_features(cfg: DictConfig, source: DataSource) -> Any:
    """Build the frozen feature networks of the loss: Drifting's features, or perceptual distances by name.

    Raises UserError if their weights are missing or they do not fit the data.
    """
    if "drift_features" in cfg:
        return make_part(cfg, "drift_features")(source=source, cache_dir=cfg.cache_dir)
    return make_features(cfg, source)


def prepare_decoder(cfg: DictConfig, module: GenerativeModule) -> None:
    """Load the decoder of a latent model if grids or metrics need it; raises UserError."""
    if module.decoder is None:
        return
    if cfg.metrics.enabled and "classifier" in cfg.metrics:
        raise UserError(f"metrics.enabled=true: no classifier judges the latents of {cfg.data.name}; metrics=none")
    if cfg.grid.enabled or cfg.metrics.enabled:
        try:
            module.decoder.load()
        except UserError as error:
            without = "grid.enabled=false" + " metrics=none" * cfg.metrics.enabled
            raise UserError(f"{error}; or train without pictures, {without}") from error
