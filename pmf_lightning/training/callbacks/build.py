"""Build the callbacks of a run: EMA, logs, sample grids, evaluation and checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback

from pmf_lightning.evaluation.battery.build import JudgeSetup
from pmf_lightning.evaluation.build import EvaluatorSetup
from pmf_lightning.evaluation.small_data import metric_name
from pmf_lightning.training.callbacks.battery import BatteryEvaluation
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.early_stopping import EarlyStopping, early_stop
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.evaluation import SampleEvaluation
from pmf_lightning.training.callbacks.fid import FIDEvaluation
from pmf_lightning.training.callbacks.image_grids import ImageGrids
from pmf_lightning.training.callbacks.loss_by_time import LossByTime
from pmf_lightning.training.callbacks.micro_batch import CountedMemory, MicroBatch
from pmf_lightning.training.callbacks.rank_consistency import RankConsistencyCheck
from pmf_lightning.training.callbacks.reconstructions import Reconstructions
from pmf_lightning.training.callbacks.sample_grids import SampleGrids
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.training.callbacks.small_data import SmallDataEvaluation
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.training.callbacks.threads import CpuThreads
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.prepare import Parts


@dataclass
class TrainingCallbacks:
    """The callbacks of a run, by role."""

    averages: EMA
    by_time: LossByTime
    finite: SkipNonFinite
    progress: ThroughputBar
    checkpoint: CheckpointWriter
    threads: CpuThreads
    grids: ImageGrids | None
    evaluation: SampleEvaluation | None
    sync: RankConsistencyCheck | None
    added: Sequence[Callback]
    micro_batch: MicroBatch | None = None

    def listed(self) -> list[Callback]:
        """Return the callbacks in hook order: EMA before evaluation; added ones, checkpoint, clocks of steps last."""
        acting = [self.averages, self.micro_batch, self.by_time, self.finite, self.grids, self.evaluation]
        acting += [*self.added, self.checkpoint, self.threads, self.progress]
        return [callback for callback in [self.sync, *acting] if callback is not None]

    @property
    def early_stop(self) -> str | None:
        """Why EarlyStopping ended the run, None if it did not."""
        return early_stop(self.added)


def make_callbacks(
    parts: Parts, folder: Path, memory: CountedMemory | None = None, started: float | None = None
) -> TrainingCallbacks:
    """Build the callbacks of a run that writes to ``folder``; with ``memory``, the micro-batch is chosen by it.

    ``started`` is time.perf_counter() at the start of the run; None: now.
    """
    settings = parts.settings
    averages = EMA(settings.ema.halflife_kimg, settings.ema.rampup_ratio, settings.batch, settings.ema.device)
    signals = StopSignals()
    finite = SkipNonFinite(settings.most_skipped, folder, signals)
    progress = ThroughputBar(settings.batch, settings.log_every_steps, started)
    shared = {"averages": averages, "progress": progress}
    evaluation = make_evaluation(parts, sampling=settings.sampling, **shared)
    for callback in parts.callbacks:
        if isinstance(callback, EarlyStopping):
            callback.connect(evaluation and evaluation.name, evaluation.every_steps if evaluation else 0)
    saving = settings.every(settings.checkpoint.every_images), settings.checkpoint.keep_last
    return TrainingCallbacks(
        averages=averages,
        by_time=LossByTime(settings.t_bins, settings.log_every_steps),
        finite=finite,
        progress=progress,
        checkpoint=CheckpointWriter(folder / "checkpoints", *saving, finite, signals, evaluation),
        threads=CpuThreads(progress, settings.threads, parts.module.config["compile"]),
        grids=_make_grids(parts, folder / "grids", **shared),
        evaluation=evaluation,
        sync=None if settings.sync_tolerance is None else RankConsistencyCheck(settings.sync_tolerance),
        added=parts.callbacks,
        micro_batch=None if memory is None else MicroBatch(parts.data, memory),
    )


def make_evaluation(parts: Parts, **others: Any) -> SampleEvaluation | None:
    """Build the evaluation callback of ``metrics=``, None if metrics are disabled.

    ``others`` are arguments of ``SampleEvaluation``.
    """
    metrics, evaluator = parts.metrics, parts.evaluator
    if metrics is None or evaluator is None:
        return None
    others |= {"every_steps": parts.settings.every(metrics.every_images), "extra_steps": list(metrics.extra_steps)}
    if isinstance(evaluator, JudgeSetup):
        return BatteryEvaluation(evaluator, metrics.n, **others)
    if isinstance(evaluator, EvaluatorSetup):
        return FIDEvaluation(metrics.n, evaluator, **others)
    return SmallDataEvaluation(evaluator, metric_name(parts.source), **others)


def _make_grids(parts: Parts, folder: Path, **shared: Any) -> ImageGrids | None:
    """Build the callback of the image grids, samples or reconstructions; None if the objective has neither."""
    sample_grid, sampling = parts.settings.sample_grid, parts.settings.sampling
    if not sample_grid.enabled:
        return None
    layout = {
        "every_steps": parts.settings.every(sample_grid.every_images),
        "rows": sample_grid.rows,
        "columns": sample_grid.columns,
    }
    if parts.module.objective.samplers:
        return SampleGrids(sampling, folder=folder, **layout, **shared)
    if parts.module.objective.reconstructs:
        return Reconstructions(parts.source.held_out(), folder=folder, ema=sampling["ema"], **layout, **shared)
    return None
