"""The SD-VAE of latent models: normalised latents to pixels, and pixels to the latents that models are trained on.

iMF (arXiv 2512.02012, official code) normalises the raw latents of sd-vae-ft-mse channel by channel, (z - mean) / std,
and decodes z * std + mean. The single factor 0.18215 of Stable Diffusion and of MeanFlow is NOT applied on the way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from pmf_lightning.errors import UserError
from pmf_lightning.models.sd_vae_weights import load_vae
from pmf_lightning.precision import Number


@dataclass(frozen=True)
class SDVAE:
    """A frozen float32 autoencoder, loaded at its first use, with the normalisation of its latents.

    It is no nn.Module: it stays out of the parameters, the checkpoint and the averages of whatever holds it, and
    follows its inputs to their device.

    Args:
        weights: a folder as diffusers writes it, or one .safetensors or .bin file; None: ``repository``.
        repository: what diffusers fetches, once, where no weights are given.
        architecture: arguments of diffusers' AutoencoderKL for a single file; a folder brings its own config.json.
        mean, std: of the raw latents, per channel.
        scale: pixels along a side of a latent.
        chunk: images decoded or encoded at a time, which bounds the memory.

    Raises UserError for numbers that do not fit each other; at first use, for missing or unfitting weights.
    """

    weights: str | None
    repository: str
    architecture: Mapping[str, Any]
    mean: Sequence[Number]
    std: Sequence[Number]
    scale: int
    chunk: int

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UserError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; one per channel is needed")
        if min(self.std, default=0) <= 0:
            raise UserError(f"std={list(self.std)}: standard deviations are above 0")
        for name in ("scale", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: set it to 1 or more")

    def load(self) -> None:
        """Load the weights now, so that a missing file shows up before long work; raises UserError."""
        _ = self.vae

    @cached_property
    def vae(self) -> nn.Module:
        """The autoencoder itself, of diffusers, on raw latents."""
        vae = load_vae(self.weights, self.repository, self.architecture)
        config = vae.config
        found = (config.latent_channels, 2 ** (len(config.block_out_channels) - 1), config.out_channels)
        if found != (len(self.mean), self.scale, 3):
            raise UserError(
                f"decoder.weights={self.weights or self.repository}: this VAE makes {found[2]} colours from "
                f"{found[0]}-channel latents, {found[1]} pixels a side each; decoder.mean, decoder.std and "
                f"decoder.scale speak of 3 colours, {len(self.mean)} channels and {self.scale} pixels"
            )
        return vae

    def normalise(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map raw latents to those that a model sees: (z - mean) / std per channel."""
        mean, std = self._moments(raw)
        return (raw - mean) / std

    def denormalise(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map latents of a model to raw ones: z * std + mean per channel."""
        mean, std = self._moments(latents)
        return latents * std + mean

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b 3 {self.scale}*h {self.scale}*w"]:
        """Map normalised latents to pixels in about [-1, 1], not clipped."""
        raw, vae = self.denormalise(latents.float()), self.vae.to(latents.device)
        with torch.autocast(raw.device.type, enabled=False):
            return torch.cat([vae.decode(part).sample for part in raw.split(self.chunk)])

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float32[Tensor, "b c h w"], Float32[Tensor, "b c h w"]]:
        """Map pixels in [-1, 1] to mean and standard deviation of their raw latents: draw, then ``normalise``."""
        vae = self.vae.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            found = [vae.encode(part).latent_dist for part in images.float().split(self.chunk)]
        return torch.cat([part.mean for part in found]), torch.cat([part.std for part in found])

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(list(values))[:, None, None] for values in (self.mean, self.std))
        return mean, std
