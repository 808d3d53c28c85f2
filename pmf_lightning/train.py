"""Train a model: python -m pmf_lightning.train model=pmf_b16 data=imagenet256 trainer=gpu"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from pmf_lightning import checks, run_dir
from pmf_lightning.assemble import build, read_checkpoint
from pmf_lightning.callbacks.checkpoint import LastCheckpoint
from pmf_lightning.callbacks.ema import WeightAverages
from pmf_lightning.callbacks.finite import SkipNonFinite
from pmf_lightning.callbacks.grids import SampleGrids
from pmf_lightning.callbacks.ledger import Ledger
from pmf_lightning.callbacks.progress import Progress
from pmf_lightning.callbacks.quality import QualityCheck
from pmf_lightning.callbacks.time_bins import TimeBinLog
from pmf_lightning.callbacks.wandb_logger import RememberRun, WandbRun
from pmf_lightning.command import command
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.errors import Diverged, UserError
from pmf_lightning.features import describe, make_features
from pmf_lightning.metrics.quality import QualityProbe, metric_name
from pmf_lightning.models import cost
from pmf_lightning.module import GenerativeModule
from pmf_lightning.report import finish, pictures


@dataclass
class Hands:
    """The callbacks of a run, by what they do."""

    averages: WeightAverages
    by_time: TimeBinLog
    finite: SkipNonFinite
    progress: Progress
    checkpoint: LastCheckpoint
    grids: SampleGrids | None
    quality: QualityCheck | None

    def listed(self) -> list[Callback]:
        """In the order in which they act after a step: average first, save last but for the clock."""
        acting = [self.averages, self.by_time, self.finite, self.grids, self.quality, self.checkpoint, self.progress]
        return [callback for callback in acting if callback is not None]


def train(cfg: DictConfig) -> dict:
    """Run the training that ``cfg`` describes and return the summary that is also written to ``summary.json``.

    Raises UserError for bad input before any long work starts.
    """
    started = time.perf_counter()
    checks.training(cfg)
    source = instantiate(cfg.data)
    source.check()
    module = build(cfg)
    prepare_decoder(cfg, module)
    data = ImageData(source, cfg.seed, cfg.batch, cfg.micro_batch, cfg.workers)
    data.accumulation(checks.world_size(cfg.trainer))
    module.features = make_features(cfg, source)
    folder = run_dir.choose(cfg)
    resume = run_dir.checkpoint_to_resume(cfg, folder)
    state = read_checkpoint(resume) if resume else {"global_step": 0}
    if state["global_step"] >= cfg.steps:
        done = state["global_step"]
        raise UserError(f"steps={cfg.steps}: {resume} has {done} already; set more steps or images")
    announce(cfg, module, folder, state["global_step"])
    hands = make_callbacks(cfg, module, source, folder)
    loggers = make_loggers(cfg, module, folder, state)
    memory = [RememberRun(logger.version) for logger in loggers if isinstance(logger, WandbRun)]
    trainer = make_trainer(cfg, data, [*hands.listed(), *memory], loggers)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except Diverged:
        pictures(folder)  # the message tells to look at them
        raise
    return finish(cfg, module, trainer, hands, folder, started)


def prepare_decoder(cfg: DictConfig, module: GenerativeModule) -> None:
    """See before a run of a latent model that its pictures can be drawn; raises UserError."""
    if module.decoder is None:
        return
    if cfg.metrics.enabled:
        raise UserError(f"metrics.enabled=true: no classifier judges the latents of {cfg.data.name}; metrics=none")
    if cfg.grid.enabled:
        try:
            module.decoder.load()
        except UserError as error:
            raise UserError(f"{error}; or train without pictures, grid.enabled=false") from error


@rank_zero_only
def announce(cfg: DictConfig, module: GenerativeModule, folder: Path, step: int) -> None:
    """Print what is about to happen and what it costs, and keep the configuration."""
    OmegaConf.save(OmegaConf.create(module.config), folder / "config.yaml")
    start = f" from step {step:,}" if step else ""
    kind = "pixels" if module.decoder is None else "latents"
    print(f"{cfg.name} on {cfg.data.name}, {cfg.data.channels} x {cfg.data.resolution} x {cfg.data.resolution} {kind}")
    print(f"  {cost.count(module.network)}")
    print(f"  {cfg.steps:,} steps of {cfg.batch} images{start}; everything is written to {folder}")
    if module.features:
        print(f"  {describe(cfg, module.features)}")
    print("  loss_u and loss_v are plain mean squared errors; the adaptive loss that is minimised is about 2 by itself")


def make_callbacks(cfg: DictConfig, module: GenerativeModule, source, folder: Path) -> Hands:
    """Build what watches over the run."""
    sampling = OmegaConf.to_container(cfg.sampling, resolve=True)
    averages = WeightAverages(list(cfg.ema.half_lives_kimg), cfg.ema.ramp, cfg.batch)
    by_time = TimeBinLog(cfg.diagnostics.t_bins, cfg.log_every_steps)
    finite = SkipNonFinite(cfg.non_finite.stop_after, folder)
    progress = Progress(cfg.batch, cfg.log_every_steps)

    def every(images: int) -> int:
        return max(1, images // cfg.batch)

    grids = quality = None
    if cfg.grid.enabled:
        every_steps, size = every(cfg.grid.every_images), (cfg.grid.rows, cfg.grid.columns)
        grids = SampleGrids(folder / "grids", every_steps, *size, sampling, averages, progress)
    if cfg.metrics.enabled:
        settings = instantiate(cfg.metrics)
        probe = QualityProbe(source, settings, cfg.cache_dir)
        name, every_steps = metric_name(source), every(cfg.metrics.every_images)
        quality = QualityCheck(probe, name, every_steps, sampling, averages, progress)
    checkpoint = LastCheckpoint(folder / "checkpoints", every(cfg.checkpoint.every_images), finite)
    return Hands(averages, by_time, finite, progress, checkpoint, grids, quality)


def make_loggers(cfg: DictConfig, module: GenerativeModule, folder: Path, state: dict) -> list[Logger]:
    """Build the files, and W&B beside them where it is asked for."""
    loggers: list[Logger] = [Ledger(folder, cfg.batch, state["global_step"])]
    if cfg.logger.wandb is not None:
        loggers.append(WandbRun(dict(cfg.logger.wandb), folder, cfg.batch, module.config, state.get("wandb_run")))
    return loggers


def make_trainer(cfg: DictConfig, data: ImageData, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Build Lightning's trainer; the micro-batches follow from batch and devices."""
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its hints and hardware lists say nothing new
    options = OmegaConf.to_container(cfg.trainer, resolve=True)
    trainer = Trainer(
        **options,
        max_steps=cfg.steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers,
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
def main(cfg: DictConfig) -> None:
    """Train what the command line describes."""
    train(cfg)


if __name__ == "__main__":
    main()
