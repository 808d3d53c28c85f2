"""Images from keyed noise with the settings of the page's controls, and what they cost."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import generate, image_noise, network_evaluations, noise_shape
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number

Noise = Float[Tensor, "n c h w"]
GUIDANCE = ("omega", "t_min", "t_max")


@dataclass(frozen=True)
class Settings:
    """How to sample: the arguments of ``sampling.generate`` of the same names."""

    steps: int
    omega: Number = 1.0
    t_min: Number = 0.0
    t_max: Number = 1.0
    sampler: str | None = None


@dataclass(frozen=True)
class Controls:
    """The settings that change the images of a model: names among ``GUIDANCE``, and the ends of the sliders."""

    guidance: tuple[str, ...]
    most_steps: int
    most_omega: Number


@dataclass(frozen=True)
class Drawn:
    """Images [n, C, H, W] as levels, the seconds that all of them took together, and network evaluations per image."""

    images: UInt8[Tensor, "n c h w"]
    seconds: float
    nfe: int

    @property
    def milliseconds_per_image(self) -> float:
        """Measured time per image, the images of one request taken as one batch."""
        return 1000 * self.seconds / len(self.images)


def own_settings(module: GenerativeModule) -> Settings:
    """Return the settings with which the model is evaluated."""
    known = module.config["sampling"]
    return Settings(**{name: known[name] for name in ("steps", *GUIDANCE)}, sampler=known.get("sampler"))


def controls(module: GenerativeModule) -> Controls:
    """Return the controls of a model, from the sampler it is evaluated with and the conditions of its network."""
    own, samplers = own_settings(module), module.objective.samplers
    sampler = own.sampler or samplers[0]
    if module.network.classes <= 1:
        guidance: tuple[str, ...] = ()
    elif sampler == "one_step":
        guidance = GUIDANCE[:1]
    elif "average" in samplers:  # guidance is an input of the network
        guidance = tuple(name for name in GUIDANCE if name in module.config["conditions"])
    else:
        guidance = GUIDANCE
    most = 1 if sampler == "one_step" else max(16 if sampler == "average" else 50, own.steps)
    return Controls(guidance, most, max(8, math.ceil(own.omega)))


def allowed(module: GenerativeModule, settings: Settings) -> Settings:
    """Return the settings as the model takes them: one step where there is one, an interval in order, omega >= 1."""
    low, high = sorted((settings.t_min, settings.t_max))
    steps = min(max(1, settings.steps), controls(module).most_steps)
    return replace(settings, steps=steps, omega=max(1, settings.omega), t_min=low, t_max=high)


def unit_noise(module: GenerativeModule, seed: int, count: int, first: int = 0) -> Noise:
    """Return the noise of images first ... first + count - 1 of a seed, as ``sample`` draws it, not yet scaled."""
    return image_noise(seed, first, count, noise_shape(module.network))


def labels_of(chosen: int | None, count: int, classes: int) -> Int64[Tensor, " count"]:
    """Return ``count`` labels: all ``chosen``, or all classes in turn for None."""
    return torch.arange(count) % classes if chosen is None else torch.full((count,), chosen)


def draw(
    module: GenerativeModule,
    noise: Noise,
    labels: Int64[Tensor, " n"],
    settings: Settings,
    conditions: Mapping[str, Tensor] | None = None,
) -> Drawn:
    """Sample one batch of images from unit noise and measure it; ``conditions`` as for ``sampling.generate``.

    Raises UserError if an image is not finite.
    """
    options = asdict(allowed(module, settings))
    device = module.device
    start = time.perf_counter()
    scaled = (module.objective.noise_scale * noise).to(device)
    images = module.to_pixels(generate(module, scaled, labels.to(device), conditions=conditions, **options)).cpu()
    seconds = time.perf_counter() - start  # the copy to the CPU waits for the device
    if not images.isfinite().all():
        raise UserError("these images are not finite: the weights have diverged; choose another average")
    return Drawn(to_uint8(images), seconds, network_evaluations(module.objective, **options))


def draw_seed(
    module: GenerativeModule, labels: Int64[Tensor, " n"], seed: int, settings: Settings, first: int = 0
) -> Drawn:
    """Sample images first, first + 1, ... of a seed: those of ``sample`` and ``sample_images``."""
    noise = unit_noise(module, seed, len(labels), first)
    return draw(module, noise, labels, settings, module.objective.sampling_conditions(seed, first, len(labels)))
