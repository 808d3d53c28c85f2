"""How a run judges its own samples: from ``metrics=`` to the callback that measures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from pmf_lightning.assemble import make_part
from pmf_lightning.callbacks.fid import FidCheck, FidSettings
from pmf_lightning.callbacks.quality import QualityCheck
from pmf_lightning.callbacks.sample_check import SampleCheck
from pmf_lightning.data.dataset import Source
from pmf_lightning.errors import UserError
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.opening import DATA, complete, open_evaluator
from pmf_lightning.metrics.quality import QualityProbe, metric_name
from pmf_lightning.module import GenerativeModule


def check_metrics(cfg: DictConfig, source: Source, module: GenerativeModule) -> None:
    """See before a run that what is to be measured can be; raises UserError, which names the way without."""
    if cfg.grid.enabled and not module.objective.methods:  # an autoencoder is measured where its pictures are drawn
        _check_held_out(source, "grid.enabled=false")
    if not cfg.metrics.enabled:
        return
    if not module.objective.methods:
        raise UserError(f"metrics.enabled=true: {cfg.name} makes no images to judge; leave metrics= out")
    settings = make_part(cfg, "metrics")
    if not isinstance(settings, FidSettings):
        _check_held_out(source, "metrics=none")
        if source.classes < 2:
            raise UserError(f"metrics.enabled=true: data={source.name} has no classes to tell apart; set metrics=none")
        return
    try:
        extractor = make_part(cfg, "extractor")
        if getattr(source, "latents", False):
            _check_latents(settings, extractor, source)
        if settings.reference == DATA:
            complete(extractor, source, cfg.cache_dir)  # the data are measured when the run begins
        else:
            _opened(cfg, settings, source, module)(torch.device("cpu"))
    except UserError as error:
        asked = f"metrics=fid metrics.reference={'null' if settings.reference is None else settings.reference}"
        raise UserError(f"{asked}: {error}; or measure nothing, metrics=none") from error


def make_check(cfg: DictConfig, source: Source, module: GenerativeModule, **others: Any) -> SampleCheck | None:
    """Build the callback that ``metrics=`` asks for; None where nothing is to be measured. Raises UserError.

    ``others`` are arguments of ``SampleCheck``.
    """
    if not cfg.metrics.enabled:
        return None
    settings = make_part(cfg, "metrics")
    others |= {"every_steps": max(1, settings.every_images // cfg.batch), "extra_steps": list(settings.extra_steps)}
    if isinstance(settings, FidSettings):
        opened = _opened(cfg, settings, source, module)
        return FidCheck(settings.n, make_part(cfg, "protocol"), cfg.extractor.name, opened, **others)
    return QualityCheck(QualityProbe(source, settings, cfg.cache_dir), metric_name(source), **others)


def _opened(
    cfg: DictConfig, settings: FidSettings, source: Source, module: GenerativeModule
) -> Callable[[torch.device], Evaluator]:
    """Return what opens the evaluator of a configuration on a device."""
    channels, side, _ = module.shown_shape
    parts = (make_part(cfg, "protocol"), make_part(cfg, "extractor"), settings.reference)
    images = {"resolution": side, "channels": channels, "classes": cfg.data.classes}
    others = {"chunk": settings.chunk, "source": source, "cache_dir": cfg.cache_dir}
    return lambda device: open_evaluator(*parts, device=device, **images, **others)


def _check_held_out(source: Source, without: str) -> None:
    """Refuse what compares with held-out images where there are none; asking for them may have to decode all."""
    if getattr(source, "held_out_fraction", 1) == 0:
        raise UserError(
            f"data.held_out_fraction=0: nothing of data={source.name} is held out to compare with; set it, for example "
            f"to 0.01, or leave out what needs it ({without})"
        )


def _check_latents(settings: FidSettings, extractor: Any, source: Source) -> None:
    """Refuse what would have to see pixels of data that are latents."""
    if isinstance(extractor, partial):
        raise UserError(f"{source.name} hands out latents, which no classifier judges; set extractor=inception")
    if settings.reference == DATA:
        raise UserError(f"{source.name} hands out latents; give the statistics of the pixels, by make_stats")
