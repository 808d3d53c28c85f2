"""The SD-VAE of latent models: decodes normalised latents to pixels, and encodes pixels to latents.

iMF (arXiv 2512.02012, official code) normalises the raw latents of sd-vae-ft-mse per channel, (z - mean) / std, and
decodes z * std + mean. The scaling factor 0.18215 of Stable Diffusion and of MeanFlow is NOT applied.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file
from torch import Tensor, nn

from pmf_lightning.utils.errors import UserError, some_of
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.state_names import unwrapped
from pmf_lightning.utils.tensor_files import load_tensors

INSTALL = "pip install 'pmf_lightning[latents]'"

WANTED = "a folder with config.json and diffusion_pytorch_model.safetensors, or that .safetensors or .bin file alone"

# Names of attention weights in files older than diffusers 0.17, such as the published sd-vae-ft-mse.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_vae(weights: str | None, repository: str, architecture: Mapping[str, Any]) -> nn.Module:
    """Return diffusers' AutoencoderKL in float32, frozen, in eval mode.

    ``weights`` is a folder, a file (of the given ``architecture``), or None for ``repository`` from diffusers' cache or
    download. Raises UserError if diffusers is not installed, or the weights are missing, unreadable or of another
    network.
    """
    kind = _autoencoder()
    if weights is None:
        vae = _from_repository(kind, repository)
    elif (path := Path(weights).expanduser()).is_dir():
        vae = _from_folder(kind, path)
    elif path.is_file():
        vae = _from_file(kind, path, architecture)
    else:
        raise UserError(f"decoder.weights={weights}: no such file or folder; give {WANTED}")
    return vae.float().eval().requires_grad_(False)


def _autoencoder() -> type[nn.Module]:
    try:
        from diffusers import AutoencoderKL  # optional dependency, slow to import, only needed for latent models
    except (ImportError, RuntimeError) as error:
        raise UserError(f"latent models need diffusers, which cannot be imported here: {INSTALL}") from error
    return AutoencoderKL


def _from_repository(kind: type[nn.Module], repository: str) -> nn.Module:
    try:
        try:
            return _pretrained(kind, repository, local_files_only=True)
        except OSError:
            return _pretrained(kind, repository)
    except UserError:
        raise
    except Exception as error:  # downloads raise exceptions of several libraries
        raise UserError(
            f"decoder.weights=null: {repository} is not in diffusers' cache and cannot be fetched "
            f"({type(error).__name__}); set decoder.weights to {WANTED}"
        ) from error


def _from_folder(kind: type[nn.Module], path: Path) -> nn.Module:
    try:
        return _pretrained(kind, str(path), local_files_only=True)
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise UserError(f"decoder.weights={path}: diffusers cannot read this folder ({why}); give {WANTED}") from error


def _pretrained(kind: type[nn.Module], name: str, **options: Any) -> nn.Module:
    """Load with diffusers; raise UserError for missing weights, which diffusers would initialise randomly."""
    with torch.random.fork_rng(devices=[]):  # diffusers first initialises weights with the global generator
        vae, report = kind.from_pretrained(name, output_loading_info=True, low_cpu_mem_usage=False, **options)
    wrong = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    if wrong:
        raise UserError(f"decoder.weights={name}: {_listed(wrong)}; give {WANTED}")
    return vae


def _from_file(kind: type[nn.Module], path: Path, architecture: Mapping[str, Any]) -> nn.Module:
    state = _modern(unwrapped(_read(path), f"decoder.weights={path}"))
    if any(name.startswith(("first_stage_model.", "encoder.down.", "decoder.up.")) for name in state):
        raise UserError(
            f"decoder.weights={path}: its weights have the names of the original release; give those of diffusers, "
            f"{WANTED}"
        )
    with torch.device("meta"):
        vae = kind(**architecture)
    expected = vae.state_dict()
    wrong = {
        "missing_keys": sorted(expected.keys() - state.keys()),
        "unexpected_keys": sorted(state.keys() - expected.keys()),
        "mismatched_keys": sorted(n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape),
    }
    if any(wrong.values()):
        raise UserError(f"decoder.weights={path}: {_listed(wrong)}; give {WANTED}")
    vae.load_state_dict(state, assign=True)
    return vae


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = load_tensors(path)
    except Exception as error:
        raise UserError(f"decoder.weights={path}: cannot be read ({type(error).__name__}); give {WANTED}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"decoder.weights={path}: holds no plain state dict; give {WANTED}")
    return state


def _modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    old = re.compile(rf"(attentions\.\d+)\.({'|'.join(_RENAMED)})\.")
    return {old.sub(lambda found: f"{found[1]}.{_RENAMED[found[2]]}.", name): value for name, value in state.items()}


def _listed(wrong: Mapping[str, list]) -> str:
    """Describe the mismatches, with one example of each kind."""
    words = {"missing_keys": "lacks", "unexpected_keys": "has the foreign", "mismatched_keys": "has another shape of"}
    parts = [f"{words[key]} {some_of(names, 1)}" for key, names in wrong.items() if names]
    return "not the weights of this VAE: it " + ", ".join(parts)


@dataclass(frozen=True)
class SDVAE:
    """A frozen float32 autoencoder, loaded at first use, with the normalisation of its latents.

    It is not an nn.Module, so it is not part of the parameters, the checkpoint or the averages of its owner. It moves
    to the device of its inputs.

    Args:
        weights: a folder in diffusers' format, or one .safetensors or .bin file; None: ``repository``.
        repository: downloaded once by diffusers if no weights are given.
        architecture: arguments of diffusers' AutoencoderKL for a single file; a folder has its own config.json.
        mean, std: of the raw latents, per channel.
        scale: downsampling factor from pixels to latents.
        batch_size: images decoded or encoded at a time, which bounds the memory.

    Raises UserError for inconsistent values; at first use, for missing or mismatched weights.
    """

    weights: str | None
    repository: str
    architecture: Mapping[str, Any]
    mean: Sequence[Number]
    std: Sequence[Number]
    scale: int
    batch_size: int

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UserError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; one per channel is needed")
        if min(self.std, default=0) <= 0:
            raise UserError(f"std={list(self.std)}: standard deviations are above 0")
        for name in ("scale", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: set it to 1 or more")

    def load(self) -> None:
        """Load the weights now, so that a missing file is found early; raises UserError."""
        _ = self.vae

    @cached_property
    def vae(self) -> nn.Module:
        """The autoencoder of diffusers, which works on raw latents."""
        vae = load_vae(self.weights, self.repository, self.architecture)
        config = vae.config
        found = (config.latent_channels, 2 ** (len(config.block_out_channels) - 1), config.out_channels)
        if found != (len(self.mean), self.scale, 3):
            raise UserError(
                f"decoder.weights={self.weights or self.repository}: this VAE decodes latents of {found[0]} "
                f"channels to {found[2]} colours, {found[1]} pixels per side of a latent; decoder.mean, decoder.std "
                f"and decoder.scale require 3 colours, {len(self.mean)} channels and {self.scale} pixels"
            )
        return vae

    def normalise(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map raw latents to the normalised latents of a model: (z - mean) / std per channel."""
        mean, std = self._moments(raw)
        return (raw - mean) / std

    def denormalise(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Map normalised latents of a model to raw latents: z * std + mean per channel."""
        mean, std = self._moments(latents)
        return latents * std + mean

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b 3 {self.scale}*h {self.scale}*w"]:
        """Map normalised latents to pixels in about [-1, 1], not clipped, without gradient."""
        return self.decode_with_gradient(latents)

    def decode_with_gradient(
        self, latents: Float[Tensor, "b c h w"]
    ) -> Float32[Tensor, "b 3 {self.scale}*h {self.scale}*w"]:
        """Map normalised latents to pixels in about [-1, 1], not clipped; gradients flow back to the latents."""
        raw, vae = self.denormalise(latents.float()), self.vae.to(latents.device)
        with torch.autocast(raw.device.type, enabled=False):
            return torch.cat([vae.decode(part).sample for part in raw.split(self.batch_size)])

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float32[Tensor, "b c h w"], Float32[Tensor, "b c h w"]]:
        """Map pixels in [-1, 1] to mean and standard deviation of their raw latents; sample, then ``normalise``."""
        vae = self.vae.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            found = [vae.encode(part).latent_dist for part in images.float().split(self.batch_size)]
        return torch.cat([part.mean for part in found]), torch.cat([part.std for part in found])

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        moments = torch.tensor([list(self.mean), list(self.std)], dtype=like.dtype)
        mean, std = moments[..., None, None].to(like.device, non_blocking=True)
        return mean, std
