"""The callbacks of a run: averages, logs, pictures, measurements and checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.callbacks.checkpoint import LastCheckpoint
from pmf_lightning.callbacks.ema import WeightAverages
from pmf_lightning.callbacks.finite import SkipNonFinite
from pmf_lightning.callbacks.grids import SampleGrids
from pmf_lightning.callbacks.progress import Progress
from pmf_lightning.callbacks.reconstructions import Reconstructions
from pmf_lightning.callbacks.sample_check import SampleCheck
from pmf_lightning.callbacks.signals import StopSignals
from pmf_lightning.callbacks.sync_check import SyncCheck
from pmf_lightning.callbacks.time_bins import TimeBinLog
from pmf_lightning.data.dataset import Source
from pmf_lightning.judging import make_check
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
    quality: SampleCheck | None
    sync: SyncCheck | None

    def listed(self) -> list[Callback]:
        """In the order in which they act after a step: average first, save last but for the clock."""
        acting = [self.averages, self.by_time, self.finite, self.grids, self.quality, self.checkpoint, self.progress]
        return [callback for callback in [self.sync, *acting] if callback is not None]


def make_callbacks(cfg: DictConfig, module: GenerativeModule, source: Source, folder: Path) -> Hands:
    """Build what watches over the run; raises UserError where a measurement is asked for that makes no sense."""
    sampling = OmegaConf.to_container(cfg.sampling, resolve=True)
    averages = WeightAverages(list(cfg.ema.half_lives_kimg), cfg.ema.ramp, cfg.batch)
    by_time = TimeBinLog(cfg.diagnostics.t_bins, cfg.log_every_steps)
    signals = StopSignals()
    finite = SkipNonFinite(cfg.non_finite.stop_after, folder, signals)
    progress = Progress(cfg.batch, cfg.log_every_steps)

    def every(images: int) -> int:
        return max(1, images // cfg.batch)

    grids = None
    if cfg.grid.enabled:
        every_steps, size = every(cfg.grid.every_images), (cfg.grid.rows, cfg.grid.columns)
        if module.objective.methods:
            grids = SampleGrids(folder / "grids", every_steps, *size, sampling, averages, progress)
        else:  # an autoencoder
            held_out, ema = source.held_out(), sampling["ema"]
            grids = Reconstructions(folder / "grids", every_steps, *size, held_out, ema, averages, progress)
    quality = make_check(cfg, source, module, sampling=sampling, averages=averages, progress=progress)
    saving = every(cfg.checkpoint.every_images), cfg.checkpoint.keep_last
    checkpoint = LastCheckpoint(folder / "checkpoints", *saving, finite, signals, quality)
    sync = None if cfg.sync_tolerance is None else SyncCheck(cfg.sync_tolerance)
    return Hands(averages, by_time, finite, progress, checkpoint, grids, quality, sync)
