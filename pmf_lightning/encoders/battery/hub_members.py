"""Encoders of other libraries: Hugging Face transformers, DreamSim, and the VAE of FLUX from diffusers."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pmf_lightning.encoders.base import three_channels
from pmf_lightning.encoders.battery.member import Images, Member, Vectors, normalised, resized
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number


class TransformersMember(Member):
    """A vision model of ``transformers``.

    Args:
        model: name on the hub, such as facebook/webssl-dino1b-full2b-224.
        name: name in error messages.
        weights: folder of a downloaded copy (config.json and weights); None: the hub's cache, or its download.
        side, mean, std: input size in pixels, and the normalisation of colours in [0, 1].
        output: "pooler_output", or the index of a tuple.
        width: numbers per image.
        remote_code: whether code of the model's repository may run on this machine; None: it would have to, for this
            model, and the user has not decided.

    Raises UserError if the library or the weights are missing, or if remote code would have to run without permission.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str,
        weights: str | None,
        side: int,
        mean: Sequence[Number],
        std: Sequence[Number],
        output: str | int,
        width: int,
        remote_code: bool | None = False,
    ):
        super().__init__()
        option = f"battery.members.{name}"
        if remote_code is None:
            raise UserError(
                f"{option}.remote_code is not set: {model} consists of code in its repository, which would run here; "
                "set it to true if you trust that code, or leave the encoder out of the battery"
            )
        library = _library("transformers", "transformers", option)
        self.input_side, self.mean, self.std, self.output, self.width = side, tuple(mean), tuple(std), output, width
        self.facts = (model, side, *self.mean, *self.std, output)

        def load() -> nn.Module:
            place = model if weights is None else str(Path(weights).expanduser())
            return library.AutoModel.from_pretrained(place, trust_remote_code=remote_code, dtype=torch.float32)

        self.net = _fetched(load, model, weights, option)
        self.freeze()

    def vectors(self, images: Images) -> Vectors:
        """Return one vector per image."""
        colours = three_channels(images.to(next(self.net.parameters()).dtype)) / 2 + 0.5
        found = self.net(normalised(resized(colours, self.input_side), self.mean, self.std))
        return found[self.output] if isinstance(self.output, int) else getattr(found, self.output)


class DreamSimMember(Member):
    """The embedding of DreamSim's ensemble (DINO, CLIP and OpenCLIP; arXiv 2306.09344), from the package ``dreamsim``.

    ``weights`` is the folder that the package downloads into; None: ./models, the package's own. Raises UserError if
    the package is missing or the download fails.
    """

    width = 1792

    def __init__(self, name: str = "dreamsim", weights: str | None = None):
        super().__init__()
        option = f"battery.members.{name}"
        library = _library("dreamsim", "dreamsim", option)
        folder = "./models" if weights is None else str(Path(weights).expanduser())
        load = lambda: library.dreamsim(pretrained=True, device="cpu", cache_dir=folder)[0]  # noqa: E731
        self.net = _fetched(load, "dreamsim's ensemble", weights, option)
        self.freeze()

    def vectors(self, images: Images) -> Vectors:
        """Return the embedding of images resized to 224 pixels, [n, 1792]; the package normalises."""
        return self.net.embed(resized(three_channels(images.float()) / 2 + 0.5, 224))


class VAEMember(Member):
    """Means of a VAE's latents (diffusers AutoencoderKL), averaged over cells of ``cell`` x ``cell``, flattened.

    Images in [-1, 1] are resized to ``side`` by antialiased bilinear interpolation. ``model`` is the repository on the
    hub and ``folder`` the part of it, ``weights`` the path of a downloaded copy of that part. Raises UserError if the
    library or the weights are missing.
    """

    def __init__(self, model: str, *, name: str, weights: str | None, folder: str, side: int, cell: int, width: int):
        super().__init__()
        option = f"battery.members.{name}"
        library = _library("diffusers", "latents", option)
        self.input_side, self.cell, self.width, self.facts = side, cell, width, (model, side, cell)

        def load() -> nn.Module:
            if weights is None:
                return library.AutoencoderKL.from_pretrained(model, subfolder=folder)
            return library.AutoencoderKL.from_pretrained(str(Path(weights).expanduser()))

        self.net = _fetched(load, f"{model}, {folder}", weights, option)
        self.freeze()

    def vectors(self, images: Images) -> Vectors:
        """Return the averaged means, [n, latent channels x cells]."""
        pixels = resized(three_channels(images.to(self.net.dtype)), self.input_side, "bilinear")
        means = self.net.encode(pixels).latent_dist.mean
        return functional.avg_pool2d(means, self.cell).flatten(1)


def _library(name: str, extra: str, option: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{option}: the package {name} is not installed; pip install 'pmf_lightning[{extra}]', or leave the "
            "encoder out of the battery"
        ) from error


def _fetched(load: Callable[[], nn.Module], what: str, weights: str | None, option: str) -> nn.Module:
    """Return the loaded network without touching the global random numbers; UserError if that fails."""
    if weights is not None and not Path(weights).expanduser().is_dir():
        raise UserError(f"{option}.weights={weights}: no such folder; give the one with the downloaded files of {what}")
    try:
        with torch.random.fork_rng(devices=[]):
            return load()
    except Exception as error:  # every library has its own errors for a missing connection or a foreign folder
        reason = shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
        raise UserError(
            f"{option}: the weights of {what} are not on this machine and cannot be downloaded, or are damaged "
            f"({reason}); get them elsewhere and give their folder as {option}.weights, or leave the encoder out"
        ) from error
