"""The callbacks of a run: averages, logs, pictures, measurements and checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.assemble import make_part
from pmf_lightning.callbacks.checkpoint import LastCheckpoint
from pmf_lightning.callbacks.ema import WeightAverages
from pmf_lightning.callbacks.finite import SkipNonFinite
from pmf_lightning.callbacks.grids import SampleGrids
from pmf_lightning.callbacks.progress import Progress
from pmf_lightning.callbacks.quality import QualityCheck
from pmf_lightning.callbacks.reconstructions import Reconstructions
from pmf_lightning.callbacks.time_bins import TimeBinLog
from pmf_lightning.data.dataset import Source
from pmf_lightning.errors import UserError
from pmf_lightning.metrics.quality import QualityProbe, metric_name
from pmf_lightning.module import GenerativeModule


@dataclass
class Hands:
    """The callbacks of a run, by what they do."""

    averages: WeightAverages
    by_time: TimeBinLog
    finite: SkipNonFinite
    progress: Progress
    checkpoint: LastCheckpoint
    grids: SampleGrids | Reconstructions | None
    quality: QualityCheck | None

    def listed(self) -> list[Callback]:
        """In the order in which they act after a step: average first, save last but for the clock."""
        acting = [self.averages, self.by_time, self.finite, self.grids, self.quality, self.checkpoint, self.progress]
        return [callback for callback in acting if callback is not None]


def make_callbacks(cfg: DictConfig, module: GenerativeModule, source: Source, folder: Path) -> Hands:
    """Build what watches over the run; raises UserError where a measurement is asked for that makes no sense."""
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
        if module.objective.methods:
            grids = SampleGrids(folder / "grids", every_steps, *size, sampling, averages, progress)
        else:  # an autoencoder
            held_out, ema = source.held_out(), sampling["ema"]
            grids = Reconstructions(folder / "grids", every_steps, *size, held_out, ema, averages, progress)
    if cfg.metrics.enabled:
        if not module.objective.methods:
            raise UserError(f"metrics.enabled=true: {cfg.name} makes no images to judge; leave metrics= out")
        settings = make_part(cfg, "metrics")
        probe = QualityProbe(source, settings, cfg.cache_dir)
        name, every_steps = metric_name(source), every(cfg.metrics.every_images)
        extra = list(settings.extra_steps)
        quality = QualityCheck(probe, name, every_steps, sampling, extra, averages, progress)
    checkpoint = LastCheckpoint(folder / "checkpoints", every(cfg.checkpoint.every_images), finite)
    return Hands(averages, by_time, finite, progress, checkpoint, grids, quality)
