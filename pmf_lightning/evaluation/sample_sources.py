"""What is judged, a checkpoint's images or images that exist, and what judges them, from a command's configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.encoders.base import file_sha256
from pmf_lightning.evaluation.build import DATA, open_evaluator
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.pipeline.build import make_part
from pmf_lightning.pipeline.checkpoints import load_checkpoint, weights_file
from pmf_lightning.pipeline.images import finite_images, prepare_decoder, sampling_options
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class SampleSource:
    """What is judged: ``generate(labels, first)`` makes its images, ``about`` says what they are.

    ``n`` is how many there are (None: any number), ``shape`` that of an image [C, H, W]; ``classes`` and ``config``,
    the configuration, are of a model. ``said`` says which images are there, ``said_done`` what was done to those that
    all ranks read.
    """

    generate: Callable[[Tensor, int], Tensor]
    shape: tuple[int, int, int]
    n: int | None
    classes: int | None
    about: dict[str, Any]
    config: Mapping[str, Any] | None = None
    said: Callable[[], list[str]] = list
    said_done: Callable[[], list[str]] = list


def existing_images(cfg: DictConfig) -> SampleSource:
    """Return the images of ``images=``, with the channels of the data that a classifier saw; raises UserError."""
    images = open_images(cfg.images, 3 if cfg.get("data") is None else cfg.data.channels, cfg.background)
    about = {"judged": str(cfg.images), "quantiser": "none: the images were whole levels"}
    return SampleSource(
        generate=lambda labels, first: images(first, first + len(labels)),
        shape=images.shape,
        n=len(images),
        classes=None,
        about=about,
        said=images.said,
        said_done=images.said_done,
    )


def images_of_checkpoint(cfg: DictConfig, device: torch.device) -> SampleSource:
    """Return what the checkpoint ``ckpt=`` makes, on its device, with the options of sampling; raises UserError."""
    module = load_checkpoint(cfg.ckpt, cfg.ema)
    check_generates(cfg.ckpt, module)
    prepare_decoder(module, cfg.decoder.weights)
    options = sampling_options(cfg, module)
    module = module.to(device)
    return SampleSource(
        generate=lambda labels, first: finite_images(module, labels, cfg.seed, first, **options),
        shape=module.image_shape,
        n=None,
        classes=module.network.classes,
        about=_about(cfg, module, options),
        config=module.config,
    )


def check_generates(ckpt: str, module: GenerativeModule) -> None:
    """Raise UserError for a model that makes no images."""
    if not module.objective.samplers:
        raise UserError(f"ckpt={ckpt}: {module.config['name']} makes no images to judge; give a generator")


def _about(cfg: DictConfig, module: GenerativeModule, options: dict[str, Any]) -> dict[str, Any]:
    """Say which weights are judged and how they sample."""
    options = options | {"method": options["method"] or module.objective.samplers[0]}
    return {
        "judged": str(cfg.ckpt),
        "model": module.config["name"],
        "checkpoint_sha256": file_sha256(weights_file(Path(cfg.ckpt))),
        "ema": module.average,
        **options,
        "nfe": network_evaluations(module.objective, **options),
        "seed": cfg.seed,
    }


def evaluator_of(
    cfg: DictConfig,
    shape: tuple[int, int, int],
    classes: int | None,
    config: Mapping[str, Any] | None,
    device: torch.device,
) -> Evaluator:
    """Return what judges images of ``shape`` [C, H, W] as ``cfg`` says; all ranks call it. Raises UserError.

    ``config`` is that of the checkpoint they are made by, if any.
    """
    return open_evaluator(
        make_part(cfg, "protocol"),
        make_part(cfg, "extractor"),
        cfg.reference,
        chunk=cfg.chunk,
        device=device,
        resolution=shape[1],
        classes=classes,
        channels=shape[0],
        precision_recall_reference=cfg.precision_recall_reference,
        crop=CROP_RULE if config is not None and "root" in config["data"] else None,
        source=_data_at_hand(cfg, config),
        cache_dir=cfg.cache_dir,
    )


def _data_at_hand(cfg: DictConfig, config: Mapping[str, Any] | None) -> DataSource | None:
    """Return the data that ``data=`` names, or those of the checkpoint; None where there are neither, or not wanted."""
    if not cfg.extractor.get("_partial_", False) and cfg.reference != DATA:
        return None
    if cfg.get("data") is not None:
        return make_part(cfg, "data")
    return None if config is None else make_part(OmegaConf.create(config), "data")
