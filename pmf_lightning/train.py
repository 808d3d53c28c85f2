"""Train a model: python -m pmf_lightning.train model=pmf_b16 data=imagenet256 trainer=gpu"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.cli import command
from pmf_lightning.config import validate
from pmf_lightning.config.compose import one_line
from pmf_lightning.data.datamodule import StepData
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.queues.datamodule import QueueData
from pmf_lightning.distributed import slurm
from pmf_lightning.distributed.strategies import trainer_options
from pmf_lightning.pipeline.build import build, make_source
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.profiling import model_cost
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations
from pmf_lightning.sweeps import subprocess_run
from pmf_lightning.sweeps.jobs import measured
from pmf_lightning.training import resume, run_dir
from pmf_lightning.training.callbacks.build import check_metrics, make_callbacks
from pmf_lightning.training.callbacks.disk_errors import tolerate_output_errors
from pmf_lightning.training.class_names import announce_classes, check_same_classes
from pmf_lightning.training.loggers.jsonl import JSONLLogger
from pmf_lightning.training.loggers.wandb import WandbLogger, WandbResume
from pmf_lightning.training.prepare import check_inputs, make_data, make_encoders, prepare_decoder
from pmf_lightning.training.resume import Start
from pmf_lightning.training.summary import finish, pictures
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.errors import Diverged, ProcessLost, UserError
from pmf_lightning.utils.pasted import path_argument
from pmf_lightning.utils.provenance import provenance


def train(cfg: DictConfig) -> dict:
    """Run the training that ``cfg`` describes and return its summary, which is also written to ``summary.json``.

    Raises UserError for bad input before any long work starts.
    """
    with tolerate_output_errors(), run_dir.record_errors(cfg):  # no decorator: launchers pickle this function
        return _train(cfg)


def _train(cfg: DictConfig) -> dict:
    started = time.perf_counter()
    validate.training(cfg)
    if (summary := resume.finished(cfg)) is not None:
        print(f"{cfg.run_dir} is finished already, and left alone")
        return summary
    known = run_dir.known(cfg)
    start = resume.find(cfg, known)
    source = make_source(cfg)
    source.check()
    check_same_classes(source, start.checkpoint)
    module = build(cfg)
    check_inputs(cfg, source, module.objective)
    prepare_decoder(cfg, module)
    check_metrics(cfg, source, module)
    data = make_data(cfg, source, module.objective)
    data.accumulation(validate.world_size(cfg.trainer))
    data.check_room()
    module.set_encoders(make_encoders(cfg, source, module.objective))
    folder = run_dir.choose(cfg, known)
    with run_dir.lock_run_dir(folder):
        return _fit(cfg, source, module, data, folder, resume.find_again(start, cfg, folder), started)


def _fit(
    cfg: DictConfig,
    source: DataSource,
    module: GenerativeModule,
    data: StepData | QueueData,
    folder: Path,
    start: Start,
    started: float,
) -> dict:
    announce(cfg, module, folder, start)
    announce_classes(source, folder)
    hands = make_callbacks(cfg, module, source, folder)
    loggers = make_loggers(cfg, module, folder, start)
    memory = [WandbResume(logger.version) for logger in loggers if isinstance(logger, WandbLogger)]
    trainer = make_trainer(cfg, data, [*hands.listed(), *memory], loggers)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
    except Diverged:
        pictures(folder)  # the error message refers to them
        trainer.strategy.barrier()  # rank 0 draws; a launcher would kill it when another rank exits
        raise
    except RuntimeError as error:
        if trainer.world_size > 1 and _of_the_network(error):
            raise ProcessLost(
                f"step {trainer.global_step}: another process of this run is gone or out of reach ({one_line(error)}); "
                f"see what it printed last, and go on with {path_argument('run_dir', folder)} ckpt=last"
            ) from error
        raise
    if hands.checkpoint.signals.requeue:
        slurm.requeue(cfg)  # before drawing: time is short
    with _room(folder):
        return finish(cfg, module, trainer, hands, folder, started)


def _of_the_network(error: RuntimeError) -> bool:
    """Return whether an error is a connection error between ranks; gloo's have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Turn an OSError while the summary is written, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run_dir={folder}: the checkpoint is saved, the summary is not ({error}); "
            f"make room and repeat the command with {path_argument('run_dir', folder)} ckpt=auto"
        ) from error


@rank_zero_only
def announce(cfg: DictConfig, module: GenerativeModule, folder: Path, start: Start) -> None:
    """Print the run's setup and costs; write config.yaml and run.json (versions and hardware)."""
    with atomic_write(folder / "config.yaml") as draft:
        OmegaConf.save(OmegaConf.create(module.config), draft)
    with atomic_write(folder / "run.json") as draft:
        draft.write_text(json.dumps(provenance(cfg.trainer.accelerator), indent=2) + "\n")
    begin = f" from step {start.step:,}" if start.step else ""
    kind = "pixels" if module.decoder is None else "latents"
    print(f"{cfg.name} on {cfg.data.name}, {cfg.data.channels} x {cfg.data.resolution} x {cfg.data.resolution} {kind}")
    is_generator = bool(module.objective.samplers)
    weights = sum(weight.numel() for weight in module.network.parameters())
    print(f"  {model_cost.count(module.network) if is_generator else f'{weights:,} parameters'}")
    print(f"  {cfg.steps:,} steps of {cfg.batch} images{begin}; everything is written to {folder}")
    if start.checkpoint:
        print(f"  {start.line}")
    for line in (module.objective.encoder_note(module.encoders), module.objective.loss_note):
        if line:
            print(f"  {line}")
    if is_generator:
        options = {name: cfg.sampling[name] for name in OPTIONS}
        steps, evaluations = cfg.sampling.steps, network_evaluations(module.objective, **options)
        print(f"  judged by samples of {steps} step(s), {evaluations} network evaluation(s) per image")


def make_loggers(cfg: DictConfig, module: GenerativeModule, folder: Path, start: Start) -> list[Logger]:
    """Build the file logger, and the W&B logger if configured."""
    loggers: list[Logger] = [JSONLLogger(folder, cfg.batch, start.step)]
    if cfg.logger.wandb is not None:
        loggers.append(WandbLogger(dict(cfg.logger.wandb), folder, cfg.batch, module.config, start.wandb_run))
    return loggers


def make_trainer(
    cfg: DictConfig, data: StepData | QueueData, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    """Build Lightning's Trainer; the number of micro-batches follows from batch and devices."""
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hides its hints and hardware lists
    options = trainer_options(cfg)
    trainer = Trainer(
        **options,
        max_steps=cfg.steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers,
        plugins=slurm.plugins(),
        log_every_n_steps=cfg.log_every_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    return trainer


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train what the command line describes; return the metric that sweeps optimise."""
    return measured(
        cfg, subprocess_run.train_in_subprocess(cfg) if subprocess_run.needs_subprocess(cfg) else train(cfg)
    )


if __name__ == "__main__":
    main()
