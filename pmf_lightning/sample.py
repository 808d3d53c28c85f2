"""Draw images from a checkpoint: python -m pmf_lightning.sample ckpt=runs/... classes=[3,7] n=64 omega=2 out=samples"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning import checks
from pmf_lightning.assemble import load_checkpoint
from pmf_lightning.command import command
from pmf_lightning.data.pixels import to_float, to_uint8
from pmf_lightning.errors import UserError
from pmf_lightning.folders import writable
from pmf_lightning.module import GenerativeModule
from pmf_lightning.pictures import save_grid
from pmf_lightning.sampling import OPTIONS, network_evaluations, numbered_images

MOST_ON_GRID = 400


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Draw the images that ``cfg`` (conf/sample.yaml) asks for; return the paths "grid" and "images" and their "nfe".

    Image i has label ``classes[i % len(classes)]`` and depends on (seed, i) besides. Raises UserError for bad input.
    """
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise UserError("ckpt is not set; give a run directory or a checkpoint file")
    checks.torch_device(cfg.device)
    out = writable(Path(cfg.out), "out")
    module = load_checkpoint(cfg.ckpt, cfg.ema)
    prepare_decoder(module, cfg.decoder.weights)
    options = sampling_options(cfg, module)
    classes = list(range(module.network.classes)) if cfg.classes is None else OmegaConf.to_container(cfg)["classes"]
    checks.classes(classes, module.network.classes)
    labels = torch.tensor([classes[i % len(classes)] for i in range(cfg.n)])
    levels = draw(module.to(cfg.device), labels, cfg.seed, cfg.chunk, options)
    grid = save_grid(to_float(levels[:MOST_ON_GRID]), _columns(len(classes), cfg.n), out / "grid.png")
    np.savez(out / "samples.npz", arr_0=levels.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    return {"grid": grid, "images": out / "samples.npz", "nfe": network_evaluations(module.objective, **options)}


def prepare_decoder(module: GenerativeModule, weights: str | None) -> None:
    """Load the decoder of a latent model now, from ``weights`` where they are given; raises UserError."""
    if module.decoder is None:
        if weights is not None:
            raise UserError(f"decoder.weights={weights}: this model makes pixels and decodes nothing; leave it out")
        return
    if weights is not None:
        module.decoder = replace(module.decoder, weights=weights)
    module.decoder.load()


def sampling_options(cfg: DictConfig, module: GenerativeModule) -> dict:
    """Return steps, method, omega, t_min and t_max: those of ``cfg``, else those the model is judged by; checked."""
    judged = module.config["sampling"]
    options = {name: judged.get(name) if cfg[name] is None else cfg[name] for name in OPTIONS}
    checks.guidance(**{name: value for name, value in options.items() if name != "method"})
    checks.method(options["method"], module.objective.methods, options["steps"])
    return options


def draw(
    module: GenerativeModule, labels: Int64[Tensor, " n"], seed: int, chunk: int, options: dict
) -> UInt8[Tensor, "n c h w"]:
    """Return the images as levels on the CPU; as floats, 50,000 of 256 pixels would take 39 GB instead of 10."""
    levels = torch.empty(len(labels), *module.shown_shape, dtype=torch.uint8)
    for first in tqdm(range(0, len(labels), chunk), desc="sampling", unit="chunk", disable=len(labels) <= chunk):
        part = slice(first, first + chunk)
        levels[part] = to_uint8(finite_images(module, labels[part], seed, first, **options).cpu())
    return levels


def finite_images(
    module: GenerativeModule, labels: Int64[Tensor, " n"], seed: int, first: int, **options: Any
) -> Float[Tensor, "n c h w"]:
    """Return ``numbered_images``; UserError where one is not made of numbers, which whole levels would not show."""
    images = numbered_images(module, labels, seed, first, **options)
    if not (good := images.isfinite().flatten(1).all(1)).all():
        number = first + int(good.int().argmin())
        raise UserError(
            f"image {number} holds numbers that are not finite: the weights have diverged; give others by ema= or ckpt="
        )
    return images


def _columns(classes: int, images: int) -> int:
    """Return a width of the grid, about 10, at which every column holds one class where that is possible."""
    fitting = classes * (10 // classes) if classes <= 10 else classes
    return min(fitting if classes <= 20 else 10, images)


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw what the command line describes and say where it lies."""
    paths = sample(cfg)
    print(f"{cfg.n} images: {paths['images']} (uint8 NHWC arr_0, labels arr_1) and {paths['grid']}")
    print(f"{paths['nfe']} network evaluations for each")


if __name__ == "__main__":
    main()
