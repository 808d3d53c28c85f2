"""The rows of a training step and their division over devices and micro-batches, from a configuration."""

from omegaconf import DictConfig

from pmf_lightning.config import validate
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.division import micro_batches
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.objectives.base import Objective
from pmf_lightning.utils.errors import UserError


def given_micro_batch(cfg: DictConfig) -> int | None:
    """Return the number of ``micro_batch=``; None for null, and for auto, which is chosen when the run starts."""
    return None if cfg.micro_batch == "auto" else cfg.micro_batch


def rows_of_step(cfg: DictConfig, objective: Objective) -> int:
    """Return the rows (labels) of a step over all devices; UserError if batch or micro-batch do not suit the loss."""
    micro_batch = given_micro_batch(cfg)
    if objective.needs_global_batch and not objective.splits_batch and micro_batch is not None:
        raise UserError(
            f"micro_batch={micro_batch}: the loss of {cfg.name} has means over the complete batch; leave it out, "
            "or set a smaller batch"
        )
    rows, rest = divmod(cfg.batch, objective.images_per_label)
    if rest:
        raise UserError(
            f"batch={cfg.batch}: it counts images, {objective.images_per_label} for each label; set a multiple of "
            f"{objective.images_per_label}"
        )
    return rows


def micro_batch_of(cfg: DictConfig, objective: Objective) -> int | None:
    """Return the rows of a forward pass that the datamodule deals out; None for all, also if the loss splits them."""
    return None if objective.data == "labels" and objective.splits_batch else given_micro_batch(cfg)


def queue_bytes(cfg: DictConfig, source: DataSource, objective: Objective) -> int:
    """Return the bytes of memory of the class queues on a device; 0 without them, and if they are in a file."""
    if objective.data != "class_queues" or cfg.queues.folder is not None:
        return 0
    return QueueSettings(labels=rows_of_step(cfg, objective), **cfg.queues).sizes(source).bytes


def micro_batches_of(cfg: DictConfig, source: DataSource, objective: Objective) -> int:
    """Return the micro-batches per device and step that the datamodule would have; UserError if sizes do not fit."""
    rows, devices = rows_of_step(cfg, objective), validate.world_size(cfg.trainer)
    if objective.data == "class_queues":
        settings = QueueSettings(labels=rows, **cfg.queues)
        settings.check_classes(source.classes, source.name)
        return settings.micro_batches(devices)
    return micro_batches(rows, micro_batch_of(cfg, objective), devices)
