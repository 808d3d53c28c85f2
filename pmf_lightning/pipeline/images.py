"""Sample images from a module: decoder, sampling options, batches of uint8 images."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from omegaconf import DictConfig
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.config import validate
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import OPTIONS, numbered_images
from pmf_lightning.utils.errors import UserError


def check_generates(source: str, module: GenerativeModule) -> None:
    """Raise UserError, naming the option ``source``, for a model that is not a generator."""
    if not module.objective.samplers:
        raise UserError(f"{source}: {module.config['name']} generates no images; give a generator")


def prepare_decoder(module: GenerativeModule, weights: str | None) -> None:
    """Load the decoder of a latent model, from ``weights`` if given; raises UserError."""
    if module.decoder is None:
        if weights is not None:
            raise UserError(f"decoder.weights={weights}: this model generates pixels and has no decoder; leave it out")
        return
    if weights is not None:
        module.decoder = replace(module.decoder, weights=weights)
    module.decoder.load()


def sampling_options(cfg: DictConfig, module: GenerativeModule) -> dict:
    """Return the checked steps, method, omega, t_min and t_max of ``cfg``; the model's own are the defaults."""
    defaults = module.config["sampling"]
    options = {name: defaults.get(name) if cfg[name] is None else cfg[name] for name in OPTIONS}
    validate.guidance(**{name: value for name, value in options.items() if name != "sampler"})
    validate.sampler(options["sampler"], module.objective.samplers, options["steps"])
    if module.network.classes == 1 and options["omega"] != defaults["omega"] == 1:
        raise UserError(
            f"omega={options['omega']}: this model was trained on one class, without guidance, so that a scale has no "
            "meaning; leave omega out"
        )
    return options


def draw(
    module: GenerativeModule, labels: Int64[Tensor, " n"], seed: int, batch_size: int, options: dict
) -> UInt8[Tensor, "n c h w"]:
    """Sample images and return them as uint8 on the CPU: 50,000 of 256 pixels take 10 GB, as floats 39 GB."""
    levels = torch.empty(len(labels), *module.image_shape, dtype=torch.uint8)
    for first in tqdm(
        range(0, len(labels), batch_size), desc="sampling", unit="batch", disable=len(labels) <= batch_size
    ):
        part = slice(first, first + batch_size)
        levels[part] = to_uint8(finite_images(module, labels[part], seed, first, **options).cpu())
    return levels


def finite_images(
    module: GenerativeModule, labels: Int64[Tensor, " n"], seed: int, first: int, **options: Any
) -> Float[Tensor, "n c h w"]:
    """Return ``numbered_images``; UserError if one is not finite, which uint8 images would not show."""
    images = numbered_images(module, labels, seed, first, **options)
    if not (good := images.isfinite().flatten(1).all(1)).all():
        number = first + int(good.int().argmin())
        raise UserError(
            f"image {number} has values that are not finite: the weights have diverged; choose others by ema= or ckpt="
        )
    return images
