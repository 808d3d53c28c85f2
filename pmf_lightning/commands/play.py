"""Load the models and serve the page of the playground (command play)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.evaluation.nearest import TrainingImages, training_images
from pmf_lightning.pipeline.loading import with_last_run
from pmf_lightning.playground.drawing import draw_seed, labels_of, own_settings
from pmf_lightning.playground.models import PlayModel, load_models


def run(cfg: DictConfig) -> None:
    """Serve the page as ``pmf_lightning.play.play`` describes it; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with served(cfg) as (address, models):
        names = ", ".join(model.name for model in models)
        print(f"{names} at {address} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")


@contextmanager
def served(cfg: DictConfig) -> Iterator[tuple[str, list[PlayModel]]]:
    """Serve the page while it lasts; yield its address and the models. Raises UserError."""
    cfg = with_last_run(cfg)
    models = load_models(_paths(cfg), cfg.ema, list(cfg.trust), _device(cfg.device), cfg.decoder.weights)
    for model in models:  # the first pass allocates, so it is not what the page measures
        draw_seed(model.using(), labels_of(0, 1, 1), 0, own_settings(model.module))

    @cache
    def opened(place: int) -> TrainingImages:
        return training_images(models[place].module, cfg.nearest_images, cfg.cache_dir)

    # Gradio takes two seconds to import: refusals of the models come first.
    from pmf_lightning.playground.page.build import build_page
    from pmf_lightning.playground.page.serve import serving

    def page() -> Any:
        return build_page(models, lambda model: opened(models.index(model)))

    with serving(page, cfg.host, cfg.port, cfg.open) as address:
        yield address, models


def _paths(cfg: DictConfig) -> list[str]:
    return [cfg.ckpt] if isinstance(cfg.ckpt, str) else list(OmegaConf.to_container(cfg).get("ckpt"))


def _device(name: str) -> str:
    """Return the device: auto is a GPU if there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    validate.torch_device(name)
    return name
