"""Sample images from a checkpoint and write a grid and an .npz (command sample)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from pmf_lightning.config import validate
from pmf_lightning.data.transforms import to_float
from pmf_lightning.evaluation.nearest import above_their_nearest, training_images
from pmf_lightning.pipeline.class_names import class_numbers, column_titles
from pmf_lightning.pipeline.images import check_generates, draw, prepare_decoder, sampling_options
from pmf_lightning.pipeline.loading import load_configured, with_last_run
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.training.plots import save_grid
from pmf_lightning.utils.cache import check_not_there, no_empty_folder, writable
from pmf_lightning.utils.threads import one_if_busy

MOST_ON_GRID = 400
GRID, IMAGES, NEAREST = "grid.png", "samples.npz", "nearest.png"
LATEST = "samples"  # the default of out=, which the next command replaces


def run(cfg: DictConfig) -> dict[str, Any]:
    """Sample as ``pmf_lightning.sample.sample`` describes it."""
    validate.torch_device(cfg.device)
    cfg = with_last_run(cfg)
    check_not_there(cfg.out, (Path(cfg.out) / name for name in (GRID, IMAGES, NEAREST)), cfg.force or cfg.out == LATEST)
    with no_empty_folder(Path(cfg.out)), one_if_busy(cfg.device):
        return _sampled(cfg, writable(Path(cfg.out), "out"))


def _sampled(cfg: DictConfig, out: Path) -> dict[str, Any]:
    module = load_configured(cfg.ckpt, cfg.ema, cfg.trust, cfg)
    check_generates(f"ckpt={cfg.ckpt}", module)
    prepare_decoder(module, cfg.decoder.weights)
    options = sampling_options(cfg, module)
    known, names = module.network.classes, module.class_names
    chosen = list(range(known)) if cfg.classes is None else OmegaConf.to_container(cfg)["classes"]
    classes = class_numbers(chosen, known, names)
    labels = torch.tensor([classes[i % len(classes)] for i in range(cfg.n)])
    compared = training_images(module, cfg.nearest_images, cfg.cache_dir) if cfg.nearest_images else None
    levels = draw(module.to(cfg.device), labels, cfg.seed, cfg.batch_size, options)
    columns, shown = _columns(len(classes), cfg.n), levels[:MOST_ON_GRID]
    titles = column_titles(labels[: len(shown)].tolist(), columns, names if known > 1 else None)
    grid = save_grid(to_float(shown), columns, out / GRID, titles)
    np.savez(out / IMAGES, arr_0=levels.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    written = {"grid": grid, "images": out / IMAGES, "nfe": network_evaluations(module.objective, **options)}
    (out / NEAREST).unlink(missing_ok=True)  # of other samples
    if compared is not None:
        pairs, close = above_their_nearest(shown, compared, columns)
        nearest = save_grid(to_float(pairs), columns, out / NEAREST, titles)
        written |= {"nearest": nearest, "close": close, "compared": len(compared.train)}
    return written


def _columns(classes: int, images: int) -> int:
    """Return the number of grid columns: about 10, and one class per column if possible."""
    fitting = classes * (10 // classes) if classes <= 10 else classes
    return min(fitting if classes <= 20 else 10, images)
