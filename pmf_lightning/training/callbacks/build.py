"""Build the callbacks of a run: EMA, logs, sample grids, evaluation and checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.evaluation.build import DATA, complete_extractor, open_evaluator
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.small_data import SmallDataEvaluator, metric_name
from pmf_lightning.pipeline.build import make_part
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation
from pmf_lightning.training.callbacks.fid import FIDEvaluation, FidSettings
from pmf_lightning.training.callbacks.image_grids import ImageGrids
from pmf_lightning.training.callbacks.loss_by_time import LossByTime
from pmf_lightning.training.callbacks.rank_consistency import RankConsistencyCheck
from pmf_lightning.training.callbacks.reconstructions import Reconstructions
from pmf_lightning.training.callbacks.sample_grids import SampleGrids
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.training.callbacks.small_data import SmallDataEvaluation
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.utils.errors import UserError


def check_metrics(cfg: DictConfig, source: DataSource, module: GenerativeModule) -> None:
    """Check before a run that its metrics can be computed; raises UserError naming the option that disables them."""
    if cfg.grid.enabled and module.objective.reconstructs:  # its metrics come with its image grids
        _check_held_out(source, "grid.enabled=false")
    if not cfg.metrics.enabled:
        return
    if not module.objective.samplers:
        raise UserError(f"metrics.enabled=true: {cfg.name} makes no images to judge; leave metrics= out")
    settings = make_part(cfg, "metrics")
    if not isinstance(settings, FidSettings):
        _check_held_out(source, "metrics=none")
        if source.classes < 2:
            raise UserError(f"metrics.enabled=true: data={source.name} has no classes to tell apart; set metrics=none")
        return
    try:
        extractor = make_part(cfg, "extractor")
        if source.latents:
            _check_latents(settings, extractor, source)
        if settings.reference == DATA:
            complete_extractor(extractor, source, cfg.cache_dir)  # the statistics are computed when the run begins
        else:
            _opened(cfg, settings, source, module)(torch.device("cpu"))
    except UserError as error:
        asked = f"metrics=fid metrics.reference={'null' if settings.reference is None else settings.reference}"
        raise UserError(f"{asked}: {error}; or measure nothing, metrics=none") from error


def make_check(cfg: DictConfig, source: DataSource, module: GenerativeModule, **others: Any) -> SampleEvaluation | None:
    """Build the evaluation callback of ``metrics=``, None if metrics are disabled. Raises UserError.

    ``others`` are arguments of ``SampleEvaluation``.
    """
    if not cfg.metrics.enabled:
        return None
    settings = make_part(cfg, "metrics")
    others |= {"every_steps": max(1, settings.every_images // cfg.batch), "extra_steps": list(settings.extra_steps)}
    if isinstance(settings, FidSettings):
        opened = _opened(cfg, settings, source, module)
        return FIDEvaluation(settings.n, make_part(cfg, "protocol"), cfg.extractor.name, opened, **others)
    return SmallDataEvaluation(SmallDataEvaluator(source, settings, cfg.cache_dir), metric_name(source), **others)


def _opened(
    cfg: DictConfig, settings: FidSettings, source: DataSource, module: GenerativeModule
) -> Callable[[torch.device], Evaluator]:
    """Return a function that opens the evaluator of a configuration on a device."""
    channels, side, _ = module.image_shape
    parts = (make_part(cfg, "protocol"), make_part(cfg, "extractor"), settings.reference)
    images = {"resolution": side, "channels": channels, "classes": cfg.data.classes}
    others = {"chunk": settings.chunk, "source": source, "cache_dir": cfg.cache_dir}
    return lambda device: open_evaluator(*parts, device=device, **images, **others)


def _check_held_out(source: DataSource, without: str) -> None:
    """Raise UserError if no images are held out. Reads only the option: opening the split may decode all images."""
    if not source.has_held_out:
        raise UserError(
            f"data.held_out_fraction=0: nothing of data={source.name} is held out to compare with; set it, for example "
            f"to 0.01, or leave out what needs it ({without})"
        )


def _check_latents(settings: FidSettings, extractor: Any, source: DataSource) -> None:
    """Raise UserError for metrics that need the pixels of latent data."""
    if isinstance(extractor, partial):
        raise UserError(f"{source.name} hands out latents, which no classifier judges; set extractor=inception")
    if settings.reference == DATA:
        raise UserError(f"{source.name} hands out latents; give the statistics of the pixels, by make_stats")


@dataclass
class TrainingCallbacks:
    """The callbacks of a run, by role."""

    averages: EMA
    by_time: LossByTime
    finite: SkipNonFinite
    progress: ThroughputBar
    checkpoint: CheckpointWriter
    grids: ImageGrids | None
    quality: SampleEvaluation | None
    sync: RankConsistencyCheck | None

    def listed(self) -> list[Callback]:
        """Return the callbacks in hook order: EMA before evaluation; checkpoint, then throughput, last."""
        acting = [self.averages, self.by_time, self.finite, self.grids, self.quality, self.checkpoint, self.progress]
        return [callback for callback in [self.sync, *acting] if callback is not None]


def make_callbacks(cfg: DictConfig, module: GenerativeModule, source: DataSource, folder: Path) -> TrainingCallbacks:
    """Build the callbacks of a run; raises UserError if its metrics cannot be computed."""
    sampling = OmegaConf.to_container(cfg.sampling, resolve=True)
    averages = EMA(list(cfg.ema.half_lives_kimg), cfg.ema.ramp, cfg.batch)
    by_time = LossByTime(cfg.diagnostics.t_bins, cfg.log_every_steps)
    signals = StopSignals()
    finite = SkipNonFinite(cfg.non_finite.stop_after, folder, signals)
    progress = ThroughputBar(cfg.batch, cfg.log_every_steps)

    def every(images: int) -> int:
        return max(1, images // cfg.batch)

    grids = None
    if cfg.grid.enabled:
        options = {"every_steps": every(cfg.grid.every_images), "rows": cfg.grid.rows, "columns": cfg.grid.columns}
        options |= {"folder": folder / "grids", "averages": averages, "progress": progress}
        if module.objective.samplers:
            grids = SampleGrids(sampling, **options)
        elif module.objective.reconstructs:
            grids = Reconstructions(source.held_out(), ema=sampling["ema"], **options)
    quality = make_check(cfg, source, module, sampling=sampling, averages=averages, progress=progress)
    saving = every(cfg.checkpoint.every_images), cfg.checkpoint.keep_last
    checkpoint = CheckpointWriter(folder / "checkpoints", *saving, finite, signals, quality)
    sync = None if cfg.sync_tolerance is None else RankConsistencyCheck(cfg.sync_tolerance)
    return TrainingCallbacks(averages, by_time, finite, progress, checkpoint, grids, quality, sync)
