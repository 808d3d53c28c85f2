"""Build the parts of a run from its configuration, once, after all checks that need no long work."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.config.row_tables import stored
from pmf_lightning.data.datamodule import ImageData, LabelData, StepData
from pmf_lightning.data.dataset import DataSource, FirstImages
from pmf_lightning.data.queues.datamodule import QueueData
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.distributed.launched import local_rank, srun_tasks
from pmf_lightning.encoders.build import build_encoders
from pmf_lightning.evaluation.battery.build import JudgeSetup, trained_members
from pmf_lightning.evaluation.build import DATA, EvaluatorSetup
from pmf_lightning.evaluation.small_data import SmallDataEvaluator, SmallDataSettings
from pmf_lightning.objectives.base import Objective
from pmf_lightning.pipeline.batches import micro_batch_of, rows_of_step
from pmf_lightning.pipeline.build import build
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.parts import make_part, make_source
from pmf_lightning.pipeline.sources import RUNS
from pmf_lightning.training import initial_weights
from pmf_lightning.training.callbacks.added import make_added
from pmf_lightning.training.callbacks.battery import BatterySettings
from pmf_lightning.training.callbacks.fid import FidSettings
from pmf_lightning.training.initial_weights import InitRequest
from pmf_lightning.training.loggers.build import RUN_DIR, check_packages
from pmf_lightning.training.settings import (
    CheckpointSettings,
    EMASettings,
    GridSettings,
    RunRequest,
    TrainingSettings,
)
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.free_space import all_cores

MOST_WORKERS = 8  # loading processes of a device with num_workers=auto; more only take memory


@dataclass(frozen=True)
class Parts:
    """What a run consists of. Nothing that uses it sees the configuration.

    Args:
        settings: the numbers that callbacks, loggers and the trainer read.
        source: the data.
        data: the datamodule, which feeds the data to Lightning.
        module: the LightningModule with network, objective, optimizer, decoder, and the frozen networks of the loss.
        metrics, evaluator: settings of ``metrics=`` and what measures them; None if nothing is measured.
        callbacks: the callbacks of ``callbacks=``.
        loggers: the sections of ``logger=``, from which the loggers are built once the run directory is known.
        init_lines: lines to print about the weights of ``init_from=``.
    """

    settings: TrainingSettings
    source: DataSource
    data: StepData | QueueData
    module: GenerativeModule
    metrics: FidSettings | SmallDataSettings | BatterySettings | None
    evaluator: EvaluatorSetup | SmallDataEvaluator | JudgeSetup | None
    callbacks: Sequence[Callback]
    loggers: Mapping[str, Mapping[str, Any]]
    init_lines: Sequence[str] = ()


def prepare(cfg: DictConfig, source: DataSource, resumed: bool = False) -> Parts:
    """Check a run and build its parts. Trains or downloads nothing but the networks of the loss; raises UserError.

    The network has the weights of ``init_from=``, or those of the seed. For a ``resumed`` run, ``init_from=`` is not
    read: Lightning loads the weights of the checkpoint later.
    """
    callbacks, loggers = make_added_callbacks(cfg), logger_sections(cfg)
    init = init_request(cfg)
    module = build(cfg)
    module.class_names = source.class_names
    init_lines = [] if init is None or resumed else initial_weights.load(init, module)
    if init is None and cfg.posttrain is not None:
        init_lines = ["warning: posttrain= without init_from=: this starts from a network that has learnt nothing"]
    check_inputs(cfg, source, module.objective)
    prepare_decoder(cfg, module)
    metrics, evaluator = make_evaluator(cfg, source, module)
    trained = source if cfg.train_images is None else FirstImages(source, cfg.train_images)
    data = make_data(cfg, trained, module.objective)
    data.accumulation(validate.world_size(cfg.trainer))
    data.check_room()
    module.set_encoders(make_encoders(cfg, source, module.objective, module.decoder))
    return Parts(training_settings(cfg), source, data, module, metrics, evaluator, callbacks, loggers, init_lines)


def run_request(cfg: DictConfig) -> RunRequest:
    """Return the run directory and the checkpoint that a configuration names, with the configuration itself."""
    folder = None if cfg.run_dir is None else Path(cfg.run_dir)
    name = cfg.name if cfg.posttrain is None else f"{cfg.name}-{cfg.posttrain.name}"
    return RunRequest(folder, cfg.ckpt, RUNS / f"{name}-{cfg.data.name}", cfg.steps, stored(cfg))


def init_request(cfg: DictConfig) -> InitRequest | None:
    """Return the weights that a new run starts from, None for those of the seed.

    Raises UserError for an option of ``init_from=`` without it.
    """
    if cfg.init_from is not None:
        return InitRequest(cfg.init_from, cfg.init_ema, list(cfg.init_skip), list(cfg.trust))
    for option, value in (("init_ema", cfg.init_ema), ("init_skip", ",".join(cfg.init_skip))):
        if value:
            raise UserError(f"{option}={value}: it is an option of init_from=; set that too, or leave it out")
    return None


def training_settings(cfg: DictConfig) -> TrainingSettings:
    """Return the settings of callbacks, loggers and trainer."""
    same = ("name", "steps", "batch", "log_every_steps", "sync_tolerance", "matmul_precision", "threads")
    return TrainingSettings(
        **{name: cfg[name] for name in same},
        t_bins=cfg.diagnostics.t_bins,
        most_skipped=cfg.skip_nonfinite.max_in_a_row,
        sampling=_plain(cfg.sampling),
        trainer=_plain(cfg.trainer),
        ema=EMASettings(**_plain(cfg.ema)),
        sample_grid=GridSettings(**_plain(cfg.sample_grid)),
        checkpoint=CheckpointSettings(**_plain(cfg.checkpoint)),
    )


def _plain(section: DictConfig) -> Mapping[str, Any]:
    return OmegaConf.to_container(section, resolve=True)


def make_added_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of ``callbacks=``; raises UserError for one that cannot work here."""
    return make_added(_sections(cfg.callbacks, "callbacks"), cfg.trainer.accelerator)


def logger_sections(cfg: DictConfig) -> dict[str, Mapping[str, Any]]:
    """Return the sections of ``logger=``, in which ``loggers.build.RUN_DIR`` stands for the run directory.

    Raises UserError for one whose package is missing.
    """
    named = OmegaConf.merge(cfg, {"run_dir": RUN_DIR})  # references to run_dir get the directory that is chosen later
    sections = _sections(named.logger, "logger")
    check_packages(sections)
    return sections


def _sections(group: DictConfig, name: str) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a group of ``_target_``s that are not null; raises UserError for one that is none."""
    sections = {key: section for key, section in _plain(group).items() if section is not None}
    for key, section in sections.items():
        if not isinstance(section, Mapping) or "_target_" not in section:
            raise UserError(f"{name}.{key}: it names no class; set {name}.{key}._target_=package.Class")
    return sections


def open_source(cfg: DictConfig) -> DataSource:
    """Build and check the data; raises UserError."""
    source = make_source(cfg)
    source.check()
    return source


def check_inputs(cfg: DictConfig, source: DataSource, objective: Objective) -> None:
    """Check that flips, augmentation, decoder and objective fit the data (pixels or latents); raises UserError."""
    if source.latents and cfg.decoder is None:
        raise UserError(f"decoder=null: {source.name} provides latents, which the decoder normalises; leave it out")
    if source.latents and cfg.flip:
        raise UserError(
            f"flip=true: {source.name} provides latents, and a mirrored latent is not the latent of the mirrored "
            "image; set flip=false"
        )
    if source.latents and cfg.augment is not None:
        raise UserError(
            f"augment=edm: {source.name} provides latents, and a moved latent is not the latent of the moved image; "
            "leave augment= out"
        )
    try:
        objective.check_data(latents=source.latents, flip=cfg.flip, name=source.name)
    except ValueError as error:
        raise UserError(str(error)) from error


def make_data(cfg: DictConfig, source: DataSource, objective: Objective) -> StepData | QueueData:
    """Build the datamodule for the objective's kind of data; raises UserError."""
    rows, micro_batch = rows_of_step(cfg, objective), micro_batch_of(cfg, objective)
    if objective.data == "class_queues":
        return QueueData(source, cfg.seed, QueueSettings(labels=rows, **cfg.queues), loading_processes(cfg, source))
    if objective.data == "labels":
        return LabelData(source.classes, cfg.seed, rows, micro_batch, objective.class_weights)
    return ImageData(source, cfg.seed, rows, micro_batch, loading_processes(cfg, source))


def loading_processes(cfg: DictConfig, source: DataSource) -> int:
    """Return the loading processes of a device.

    For auto the cores of the machine are divided over its devices, if srun has not done so, and each device keeps one
    for training. There are none where reading takes no time, or where the cores also train.
    """
    if cfg.num_workers != "auto":
        return cfg.num_workers
    if cfg.trainer.accelerator not in ("gpu", "cuda") or not source.costly_to_read:
        return 0
    devices = validate.world_size(cfg.trainer) // cfg.trainer.num_nodes
    cores = all_cores()
    divided = srun_tasks() > 1 and cores * devices <= (os.cpu_count() or 1)
    return max(1, min(MOST_WORKERS, (cores if divided else cores // devices) - 1))


def make_encoders(cfg: DictConfig, source: DataSource, objective: Objective, decoder: Any = None) -> Any:
    """Build the frozen networks of the loss, as the objective's ``encoder_request`` describes them; None without.

    ``decoder`` is that of a latent model. Raises UserError if their weights are missing or they do not fit the data.
    """
    request = objective.encoder_request
    if request is None:
        return None
    return build_encoders(request, cfg[request.group], source, cfg.cache_dir, decoder, measuring_device(cfg.trainer))


def measuring_device(trainer: DictConfig) -> torch.device:
    """Return the device of this process, on which real images are measured before Lightning moves the module there."""
    if trainer.accelerator not in ("gpu", "cuda"):
        return torch.device("cpu")
    local = local_rank()
    return torch.device("cuda", local if isinstance(trainer.devices, (int, str)) else trainer.devices[local])


def prepare_decoder(cfg: DictConfig, module: GenerativeModule) -> None:
    """Load the decoder of a latent model if grids or metrics need it; raises UserError."""
    if module.decoder is None:
        return
    if cfg.metrics.enabled and "classifier" in cfg.metrics:
        raise UserError(f"metrics.enabled=true: no classifier evaluates the latents of {cfg.data.name}; metrics=none")
    request = module.objective.encoder_request
    if request is not None and request.target is not None:  # the loss is of pixels
        module.decoder.load()
    if cfg.sample_grid.enabled or cfg.metrics.enabled:
        try:
            module.decoder.load()
        except UserError as error:
            without = "sample_grid.enabled=false" + " metrics=none" * cfg.metrics.enabled
            raise UserError(f"{error}; or train without sample grids, {without}") from error


def make_evaluator(
    cfg: DictConfig, source: DataSource, module: GenerativeModule
) -> tuple[Any, EvaluatorSetup | SmallDataEvaluator | JudgeSetup] | tuple[None, None]:
    """Build what measures ``metrics=``, with its settings; (None, None) if metrics are disabled.

    Raises UserError, which names the option that disables metrics, if they cannot be computed.
    """
    if cfg.sample_grid.enabled and module.objective.reconstructs:  # its metrics come with its image grids
        _check_held_out(source, "sample_grid.enabled=false")
    if not cfg.metrics.enabled:
        return None, None
    if not module.objective.samplers:
        raise UserError(f"metrics.enabled=true: {cfg.name} generates no images to evaluate; leave metrics= out")
    settings = make_part(cfg, "metrics")
    if isinstance(settings, BatterySettings):
        return settings, _judge_setup(cfg, settings, source)
    if not isinstance(settings, FidSettings):
        _check_held_out(source, "metrics=none")
        return settings, SmallDataEvaluator(source, settings, cfg.cache_dir)
    try:
        setup = _evaluator_setup(cfg, settings, source, module)
        setup.check()
    except UserError as error:
        options = f"metrics=fid metrics.reference={'null' if settings.reference is None else settings.reference}"
        raise UserError(f"{options}: {error}; or evaluate nothing, metrics=none") from error
    return settings, setup


def _judge_setup(cfg: DictConfig, settings: BatterySettings, source: DataSource) -> JudgeSetup:
    """Return the checked judge of metrics=battery; raises UserError."""
    if cfg.battery is None:
        raise UserError("metrics=battery: no encoders are chosen; set battery=, such as battery=digits")
    group = _plain(cfg.battery)
    trained = trained_members(group, {"posttrain": cfg.posttrain and _plain(cfg.posttrain), "battery": group})
    setup = JudgeSetup(group, source, settings.protocol, settings.batch_size, cfg.cache_dir, trained)
    try:
        setup.check()
    except UserError as error:
        raise UserError(f"metrics=battery: {error}; or evaluate nothing, metrics=none") from error
    return setup


def _evaluator_setup(
    cfg: DictConfig, settings: FidSettings, source: DataSource, module: GenerativeModule
) -> EvaluatorSetup:
    channels, side, _ = module.image_shape
    extractor = make_part(cfg, "extractor")
    if source.latents:
        _check_latents(settings, extractor, source)
    return EvaluatorSetup(
        protocol=make_part(cfg, "protocol"),
        extractor=extractor,
        reference=settings.reference,
        batch_size=settings.batch_size,
        resolution=side,
        channels=channels,
        classes=cfg.data.classes,
        source=source,
        cache_dir=cfg.cache_dir,
    )


def _check_held_out(source: DataSource, without: str) -> None:
    """Raise UserError if no images are held out. Reads only the option: opening the split may decode all images."""
    if not source.has_held_out:
        raise UserError(
            f"data.held_out_fraction=0: no image of data={source.name} is held out for comparison; set it, for example "
            f"to 0.01, or leave out what needs it ({without})"
        )


def _check_latents(settings: FidSettings, extractor: Any, source: DataSource) -> None:
    """Raise UserError for metrics that need the pixels of latent data."""
    if isinstance(extractor, partial):
        raise UserError(f"{source.name} provides latents, which no classifier can evaluate; set extractor=inception")
    if settings.reference == DATA:
        raise UserError(f"{source.name} provides latents; give the statistics of the pixels, by make_stats")
