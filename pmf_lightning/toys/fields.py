"""First figure of the papers: the average velocity u(z, r, t) next to the image x(z, r, t) = z - t u(z, r, t).

u is a noisy field, since its target contains the noise. x looks like an image for all r and t, so it is easier to
predict. Both are shown twice: as predicted by the network in one evaluation, and computed from a path that is simulated
in many small steps of the network's instantaneous velocity v(z, t) = u(z, t, t).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.config import validate
from pmf_lightning.objectives.fields import Image, image_from_velocity
from pmf_lightning.pipeline.loading import load, with_last_run
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import not_set
from pmf_lightning.sampling import ode
from pmf_lightning.sampling.generate import image_noise, noise_shape
from pmf_lightning.toys.fields_figure import save_fields
from pmf_lightning.utils.cache import no_empty_folder, writable
from pmf_lightning.utils.errors import UserError


def noise_content(fields: Image) -> Float[Tensor, " b"]:
    """Return the share of high frequencies in each field, relative to white noise: about 1 for noise, 0 for smoothness.

    High frequencies (fx, fy) have max(|fx|, |fy|) of at least a quarter of a cycle per pixel, half of the Nyquist
    frequency. They have three quarters of the energy of white noise. Energies are summed over channels, without the
    mean of each channel. The share of a constant field is 0.
    """
    height, width = fields.shape[2:]
    energy = torch.fft.fft2(fields.double()).abs().square().sum(1)
    energy[:, 0, 0] = 0
    fx, fy = (torch.fft.fftfreq(side, device=fields.device).abs() for side in (width, height))
    fine = torch.maximum(fy[:, None], fx[None]) >= 0.25
    expected = fine.sum() / (height * width - 1)
    total = energy.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return (energy * fine).sum((1, 2)) / total / expected


@dataclass(frozen=True)
class Pair:
    """Fields [n,C,H,W] at one (r, t), from the network and from the simulated path."""

    r: float
    t: float
    u: Image
    u_path: Image
    x: Image
    x_path: Image

    def measured(self) -> dict[str, Any]:
        """Return the mean noise content of each field, and the relative rms error of the network's u."""
        content = {name: noise_content(getattr(self, name)).mean().item() for name in ("u", "u_path", "x", "x_path")}
        miss = ((self.u - self.u_path).square().sum() / self.u_path.square().sum()).sqrt().item()
        return {"r": self.r, "t": self.t, "noise_content": content, "u_error": miss}


def fields(cfg: DictConfig) -> dict[str, Path]:
    """Compute and plot the fields of the model that ``cfg`` (conf/toys/fields.yaml) names; return the written paths.

    Raises UserError for bad input.
    """
    check(cfg)
    cfg = with_last_run(cfg)
    with no_empty_folder(Path(cfg.out)):
        out = writable(Path(cfg.out), "out")
        module = load(cfg.ckpt, cfg.ema, cfg.trust)
        options = guidance_options(cfg, module)
    times = sorted(map(float, cfg.path_times), reverse=True)
    path, pairs = follow(module.to(cfg.device), times, cfg, options)
    measured = {
        "ckpt": str(cfg.ckpt),
        "images": cfg.n,
        "guidance": options,
        "noise_content_z": {str(t): noise_content(z).mean().item() for t, z in zip(times, path, strict=True)},
        "pairs": [pair.measured() for pair in pairs],
    }
    paths = {name: out / name for name in ("figure.png", "results.json")}
    paths["results.json"].write_text(json.dumps(measured, indent=1) + "\n")
    save_fields(path, times, pairs, measured, cfg.shown, paths["figure.png"])
    return paths


def check(cfg: DictConfig) -> None:
    """Raise UserError unless the options of ``cfg`` are valid."""
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise not_set("ckpt")
    validate.at_least(cfg, {"n": 1, "heun_steps": 1})
    if not 0 <= cfg.shown < cfg.n:
        raise UserError(f"shown={cfg.shown}: must be the number of an image, 0 to {cfg.n - 1}")
    times = sorted(cfg.path_times)
    if len(set(times)) < len(times) or not times or (times[0], times[-1]) != (0, 1):
        raise UserError(f"path_times={list(cfg.path_times)}: give different numbers from 0 to 1, both included")
    validate.torch_device(cfg.device)


def guidance_options(cfg: DictConfig, module: GenerativeModule) -> dict[str, float]:
    """Return omega, t_min and t_max of ``cfg``, else of the model's own sampling options; raises UserError."""
    if module.decoder is not None:
        raise UserError(f"ckpt={cfg.ckpt}: its fields are latents and not images; give a checkpoint of a pixel model")
    if "average" not in module.objective.samplers:
        raise UserError(
            f"ckpt={cfg.ckpt}: it does not predict an average velocity u(z, r, t); give a checkpoint of pMF or iMF"
        )
    sampling = module.config["sampling"]
    options = {name: sampling[name] if cfg[name] is None else cfg[name] for name in ("omega", "t_min", "t_max")}
    validate.guidance(**options, steps=1)
    return options


@torch.no_grad()
def follow(
    module: GenerativeModule, times: list[float], cfg: DictConfig, options: dict[str, float]
) -> tuple[list[Image], list[Pair]]:
    """Return the simulated z at each of ``times`` (descending), and the fields of every pair r <= t with t > 0."""
    network, objective = module.network, module.objective
    labels = torch.arange(cfg.n, device=module.device) % network.classes
    noise = image_noise(cfg.seed, 0, cfg.n, noise_shape(network))
    start = objective.noise_scale * noise.to(module.device)
    condition = [start.new_full((cfg.n,), value) for value in options.values()]

    def u(z: Tensor, r: float, t: float) -> Tensor:
        t, r = (z.new_full((cfg.n,), time) for time in (t, r))
        return objective.average_velocity(network, z, t, r, *condition, labels)

    with tqdm(total=2 * cfg.heun_steps * (len(times) - 1), desc="simulating", unit="evaluation") as bar:

        def velocity(z: Tensor, t: float) -> Tensor:
            bar.update(1)
            return u(z, t, t)

        path = ode.path(velocity, start, times, cfg.heun_steps)
    pairs = []
    for i, (t, z) in enumerate(zip(times[:-1], path[:-1], strict=True)):
        for r, z_r in zip(times[i:], path[i:], strict=True):
            predicted = u(z, r, t)
            true = predicted if r == t else (z - z_r) / (t - r)
            images = (image_from_velocity(z, field, z.new_full((cfg.n,), t)) for field in (predicted, true))
            pairs.append(Pair(r, t, *(field.cpu() for field in (predicted, true, *images))))
    return [z.cpu() for z in path], pairs
