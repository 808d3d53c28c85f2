"""From unit noise to images, for the exports: noise is scaled inside, and the settings are those of the evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.class_names import class_numbers
from pmf_lightning.pipeline.conversion import stored_of
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sampling.generate import OPTIONS, generate, image_noise, noise_shape


class Sampler:
    """A loaded module as a function of unit noise and labels.

    Args:
        module: the return value of ``load``.
    """

    def __init__(self, module: GenerativeModule):
        self.module = module

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the noise."""
        return noise_shape(self.module.network)

    @property
    def latent_moments(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and standard deviation per channel of raw latents; None if the network makes pixels."""
        decoder = self.module.decoder
        return None if decoder is None else (decoder.mean, decoder.std)

    def labels(self, chosen: Sequence[int | str] | int | str) -> list[int]:
        """Return the numbers of classes given by number or name; raises UserError."""
        chosen = [chosen] if isinstance(chosen, int | str) else [one for one in chosen]
        return class_numbers(chosen, self.module.network.classes, self.module.class_names)

    def noise(self, seed: int, count: int, first: int = 0) -> Float[Tensor, "b c h w"]:
        """Return the unit noise of images first, first + 1, ... of a seed, as the command sample makes it."""
        return image_noise(seed, first, count, self.noise_shape)

    def __call__(
        self,
        noise: Float[Tensor, "b c h w"],
        labels: Int64[Tensor, " b"],
        seed: int | Sequence[int] = 0,
        first: int = 0,
        **options: Any,
    ) -> Float[Tensor, "b c h w"]:
        """Return the network's images, not clipped, or the normalised latents of a latent model.

        Args:
            noise: unit noise; it is scaled here.
            labels: classes; the number of classes means none.
            seed, first: of further random conditions (Drifting's styles), as for ``numbered_images``. With a seed for
                each image, every image has those of its own seed and ``first``.
            options: those of ``generate``; None or missing: as in the evaluation of the model.

        Raises ValueError as ``generate`` does.
        """
        module, judged = self.module, self.module.config["sampling"]
        options = {name: judged.get(name) if options.get(name) is None else options[name] for name in OPTIONS}
        conditions = {name: value.to(noise.device) for name, value in self._conditions(seed, first, labels).items()}
        scaled = module.objective.noise_scale * noise
        with torch.no_grad():
            return generate(module, scaled, labels.to(noise.device), **options, conditions=conditions)

    def _conditions(self, seed: int | Sequence[int], first: int, labels: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """Return the further random conditions of the images by name; see ``__call__``."""
        draw = self.module.objective.sampling_conditions
        if isinstance(seed, int):
            return draw(seed, first, len(labels))
        each = [draw(one, first, 1) for one in seed]
        return {name: torch.cat([found[name] for found in each]) for name in each[0]}

    def save(self, folder: Path) -> None:
        """Write the weights as a weights folder, under the name that diffusers gives to weights."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        older = weights_folder.is_weights_folder(folder)
        weights_folder.write(folder, stored_of(self.module), older, weights_folder.DIFFUSERS_WEIGHTS)
