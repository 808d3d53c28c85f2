"""Check the inputs of a run; build its datamodule and the frozen networks that its loss and image grids need."""

from typing import Any

from omegaconf import DictConfig

from pmf_lightning.data.datamodule import ImageData, LabelData, StepData
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.queues.datamodule import QueueData, QueueSettings
from pmf_lightning.encoders.perceptual.build import make_distances
from pmf_lightning.objectives.base import Objective
from pmf_lightning.pipeline.build import make_part
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.utils.errors import UserError


def check_inputs(cfg: DictConfig, source: DataSource, objective: Objective) -> None:
    """Check that flips, the decoder and the objective fit the data (pixels or latents); raises UserError."""
    if source.latents and cfg.decoder is None:
        raise UserError(f"decoder=null: {source.name} hands out latents, which the decoder normalises; leave it out")
    if source.latents and cfg.flip:
        raise UserError(
            f"flip=true: {source.name} hands out latents, and a mirrored latent is not the latent of the mirrored "
            "image; set flip=false"
        )
    try:
        objective.check_data(latents=source.latents, flip=cfg.flip, name=source.name)
    except ValueError as error:
        raise UserError(str(error)) from error


def make_data(cfg: DictConfig, source: DataSource, objective: Objective) -> StepData | QueueData:
    """Build the datamodule for the objective's kind of data; raises UserError."""
    if objective.needs_global_batch and cfg.micro_batch is not None:
        raise UserError(
            f"micro_batch={cfg.micro_batch}: the loss of {cfg.name} has means over the whole batch; leave it out, or "
            "set a smaller batch"
        )
    rows, rest = divmod(cfg.batch, objective.images_per_label)
    if rest:
        raise UserError(
            f"batch={cfg.batch}: it counts images, {objective.images_per_label} for each label; set a multiple of "
            f"{objective.images_per_label}"
        )
    if objective.data == "class_queues":
        return QueueData(source, cfg.seed, QueueSettings(labels=rows, **cfg.queues), cfg.workers)
    if objective.data == "labels":
        return LabelData(source.classes, cfg.seed, rows, cfg.micro_batch, objective.class_weights)
    return ImageData(source, cfg.seed, rows, cfg.micro_batch, cfg.workers)


def make_encoders(cfg: DictConfig, source: DataSource, objective: Objective) -> Any:
    """Build the frozen networks of the loss, as the objective's ``encoder_request`` describes them; None without.

    Raises UserError if their weights are missing or they do not fit the data.
    """
    request = objective.encoder_request
    if request is None:
        return None
    if request.names is None:
        return make_part(cfg, request.group)(source=source, cache_dir=cfg.cache_dir)
    return make_distances(cfg, source, request)


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
