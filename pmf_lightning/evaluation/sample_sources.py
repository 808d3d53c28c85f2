"""Sources of the images to evaluate (a checkpoint or image files), and the evaluator for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.transforms import CROP_RULE
from pmf_lightning.evaluation.battery.build import JudgeSetup, trained_members
from pmf_lightning.evaluation.battery.scores import JudgeProtocol
from pmf_lightning.evaluation.build import DATA, open_evaluator
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.image_files import open_images
from pmf_lightning.pipeline.checkpoints import weights_file
from pmf_lightning.pipeline.images import check_generates, finite_images, prepare_decoder, sampling_options
from pmf_lightning.pipeline.loading import load_configured
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.pipeline.sources import located
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class SampleSource:
    """Source of images to evaluate: ``generate(labels, first)`` returns its images, ``about`` describes them.

    ``n`` is the number of images (None: unlimited), ``shape`` the shape of an image [C, H, W]. ``classes`` and
    ``config`` (the configuration) are those of a model. ``summary`` returns lines that describe image files,
    ``conversions`` lines on their conversions over all ranks.
    """

    generate: Callable[[Tensor, int], Tensor]
    shape: tuple[int, int, int]
    n: int | None
    classes: int | None
    about: dict[str, Any]
    config: Mapping[str, Any] | None = None
    summary: Callable[[], list[str]] = list
    conversions: Callable[[], list[str]] = list


def existing_images(folder: str, channels: int, background: str) -> SampleSource:
    """Return the image files of ``folder`` (``images=``), converted to ``channels``, as a source; raises UserError."""
    images = open_images(folder, channels, background)
    about = {"judged": str(folder), "quantiser": "none: the images were uint8 already"}
    return SampleSource(
        generate=lambda labels, first: images(first, first + len(labels)),
        shape=images.shape,
        n=len(images),
        classes=None,
        about=about,
        summary=images.summary,
        conversions=images.conversions,
    )


def images_of_checkpoint(cfg: DictConfig, device: torch.device) -> SampleSource:
    """Return the checkpoint ``ckpt=`` as a source, on ``device``, with its sampling options; raises UserError."""
    module = load_configured(cfg.ckpt, cfg.ema, cfg.trust, cfg)
    check_generates(f"ckpt={cfg.ckpt}", module)
    prepare_decoder(module, cfg.decoder.weights)
    options = sampling_options(cfg, module)
    module = module.to(device)
    return SampleSource(
        generate=lambda labels, first: finite_images(module, labels, cfg.seed, first, **options),
        shape=module.image_shape,
        n=None,
        classes=module.network.classes,
        about=_about(cfg.ckpt, cfg.seed, module, options),
        config=module.config,
    )


def _about(ckpt: str, seed: int, module: GenerativeModule, options: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the evaluated weights of ``ckpt`` and their sampling options."""
    options = options | {"sampler": options["sampler"] or module.objective.samplers[0]}
    return {
        "judged": str(ckpt),
        "model": module.config["name"],
        "checkpoint_sha256": file_sha256(weights_file(located(ckpt))),
        "ema": module.average,
        **options,
        "nfe": network_evaluations(module.objective, **options),
        "seed": seed,
    }


def evaluator_of(
    cfg: DictConfig,
    shape: tuple[int, int, int],
    classes: int | None,
    config: Mapping[str, Any] | None,
    device: torch.device,
) -> Evaluator:
    """Return the evaluator of ``cfg`` for images of ``shape`` [C, H, W]. All ranks must call it. Raises UserError.

    ``config`` is the configuration of the checkpoint, or None for image files.
    """
    return open_evaluator(
        make_part(cfg, "protocol"),
        make_part(cfg, "extractor"),
        cfg.reference,
        batch_size=cfg.batch_size,
        device=device,
        resolution=shape[1],
        classes=classes,
        channels=shape[0],
        precision_recall_reference=cfg.precision_recall_reference,
        crop=CROP_RULE if config is not None and "root" in config["data"] else None,
        source=_configured_data(cfg, config),
        cache_dir=cfg.cache_dir,
    )


def judge_of(cfg: DictConfig, subject: SampleSource) -> JudgeSetup:
    """Return the checked judge of ``battery=`` for images of ``subject``; raises UserError."""
    source = _configured_data(cfg, subject.config)
    if source is None:
        raise UserError("battery=: real images are compared with; set data=")
    group = OmegaConf.to_container(cfg.battery, resolve=True)
    rules = OmegaConf.to_container(cfg.judge, resolve=True)
    draws = rules.pop("spread_draws")
    if (source.channels, source.resolution) != (subject.shape[0], subject.shape[1]):
        raise UserError(
            f"data={source.name}: its images have {source.channels} channels and {source.resolution} pixels, those to "
            f"judge {subject.shape[0]} and {subject.shape[1]}; set data= to images like them"
        )
    trained = trained_members(group, subject.config)
    setup = JudgeSetup(group, source, JudgeProtocol(**rules), cfg.batch_size, cfg.cache_dir, trained, draws)
    setup.check()
    return setup


def _configured_data(cfg: DictConfig, config: Mapping[str, Any] | None) -> DataSource | None:
    """Return the data of ``data=`` or of the checkpoint, None if there are none or they are not needed."""
    if cfg.get("battery") is None and not cfg.extractor.get("_partial_", False) and cfg.reference != DATA:
        return None
    if cfg.get("data") is not None:
        return make_part(cfg, "data")
    return None if config is None else make_part(OmegaConf.create(config), "data")
