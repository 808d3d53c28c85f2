"""Pipeline of diffusers for the generators of pmf_lightning; it needs pip install pmf_lightning.

pmf_lightning.convert copies this file into an exported folder. It opens by
``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
"""

import inspect
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

_OUTPUTS = ("pil", "np", "pt", "latent")


class PMFLightningPipeline(DiffusionPipeline):
    """Images of classes, in one step or in several.

    Args:
        network: network with its objective (network/pmf_network.py).
        vae: AutoencoderKL of a latent model, None for a model of pixels.
    """

    model_cpu_offload_seq = "network->vae"
    _optional_components = ["vae"]

    def __init__(self, network, vae=None):
        super().__init__()
        self.register_modules(network=network, vae=vae)

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments, **options) -> None:
        """Write the pipeline as diffusers does, and its own code; upload the folder with huggingface_hub."""
        if options.pop("push_to_hub", False):
            raise ValueError("push_to_hub=True: save a folder and give it to huggingface_hub.upload_folder")
        super().save_pretrained(save_directory, *arguments, **options)
        folder = Path(save_directory)
        for part, name in ((type(self), "pipeline.py"), (type(self.network), "network/pmf_network.py")):
            shutil.copyfile(inspect.getfile(part), folder / name)
        index = json.loads((folder / self.config_name).read_text())
        index |= {
            "_class_name": ["pipeline", "PMFLightningPipeline"],
            "network": ["pmf_network", "PMFLightningNetwork"],
        }
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        seed: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Return an image for each label.

        Args:
            class_labels: numbers or names of classes.
            guidance_scale, num_inference_steps, guidance_interval: None: the settings with which the model was
                evaluated. The interval is (t_min, t_max), where t=1 is noise.
            generator: a torch.Generator, or one for each image.
            latents: unit noise [b, c, h, w], instead of a generator; the pipeline scales it.
            seed: instead of both: the images of ``python -m pmf_lightning.sample seed=...``, of which image i depends
                on (seed, i) only.
            output_type: "pil" | "np" ([b, h, w, c] in [0, 1]) | "pt" ([b, c, h, w] in [0, 1]) | "latent" (the
                network's output).
            return_dict: whether to return an ImagePipelineOutput; otherwise a tuple (images,).

        Raises ValueError for arguments that contradict each other.
        """
        self._check(generator, latents, seed, output_type)
        sampler, device, dtype = self.network.sampler, self._execution_device, self.network.dtype
        labels = torch.tensor(sampler.labels(class_labels), device=device)
        noise, key = self._noise(len(labels), generator, latents, seed)
        t_min, t_max = (None, None) if guidance_interval is None else guidance_interval
        options = {"omega": guidance_scale, "steps": num_inference_steps, "t_min": t_min, "t_max": t_max}
        found = self.network(noise.to(device, dtype), labels, seed=key, **options)
        images = found if output_type == "latent" else self._output(found, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check(self, generator, latents, seed, output_type) -> None:
        if sum(one is not None for one in (generator, latents, seed)) > 1:
            raise ValueError("give one of generator, latents and seed: each of them chooses the noise")
        if output_type not in _OUTPUTS:
            raise ValueError(f"output_type={output_type}: give one of {', '.join(_OUTPUTS)}")
        if output_type != "latent" and self.vae is None and self.network.sampler.latent_moments is not None:
            raise ValueError(
                "this model makes latents and the folder holds no vae; set pipeline.vae to "
                "AutoencoderKL.from_pretrained('stabilityai/sd-vae-ft-mse'), or take output_type='latent'"
            )

    def _noise(self, count, generator, latents, seed) -> tuple[Tensor, int | list[int]]:
        """Return unit noise, and the seed of further random conditions, or one for each image."""
        sampler = self.network.sampler
        if seed is not None:
            return sampler.noise(seed, count), seed
        shape = (count, *sampler.noise_shape)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents: their shape is {list(latents.shape)}, these labels need {list(shape)}")
        if latents is not None:
            return latents, 0
        several = isinstance(generator, list | tuple)
        each = list(generator) if several else [generator]  # diffusers takes no tuple
        if several and len(each) != count:
            raise ValueError(f"generator: {len(each)} generators, but {count} labels; give one for each image")
        place = "cpu" if each[0] is None else each[0].device
        noise = randn_tensor(shape, generator=each if several else generator, device=place)
        keys = [int(torch.randint(2**31, (), generator=one, device=place)) for one in each]
        return noise, keys if several else keys[0]

    def _output(self, found: Tensor, output_type: str):
        pixels = found.float() if self.vae is None else self._decoded(found)
        if output_type == "pil":
            levels = ((pixels + 1) / 2 * 255).clip(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            return self.numpy_to_pil(levels / 255)
        unit = ((pixels + 1) / 2).clamp(0, 1)
        return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()

    def _decoded(self, latents: Tensor) -> Tensor:
        """Decode normalised latents: raw ones are z * std + mean per channel; there is no further scaling factor."""
        mean, std = (latents.new_tensor(list(values))[:, None, None] for values in self.network.sampler.latent_moments)
        return self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample.float()
