"""Network of a diffusers pipeline that pmf_lightning exported; the code of the network is pmf_lightning's.

pmf_lightning.convert copies this file into the folder ``network`` of an export, where diffusers finds it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

try:
    from pmf_lightning.exporting.sampler import Sampler
    from pmf_lightning.pipeline.loading import load
except ImportError as error:
    raise ImportError("this model needs the code of its network: pip install pmf_lightning") from error


class PMFLightningNetwork(ModelMixin, ConfigMixin):
    """The network, with what sampling needs: objective, settings of the evaluation and class names."""

    config_name = "config.json"

    def __init__(self, sampler: Sampler):
        super().__init__()
        self.generator = sampler.module.network
        self.sampler = sampler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        **unused: Any,
    ) -> "PMFLightningNetwork":
        """Load the folder; other options of diffusers, on how weights are read, have no effect."""
        folder = Path(pretrained_model_name_or_path)
        network = cls(Sampler(load(folder / subfolder if subfolder else folder)))
        return network.to(torch_dtype) if isinstance(torch_dtype, torch.dtype) else network

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:
        """Write the weights and the configuration."""
        self.sampler.save(Path(save_directory))

    def forward(self, noise: Tensor, class_labels: Tensor, **options: Any) -> Tensor:
        """Return images [b, c, h, w] in about [-1, 1] (or normalised latents) from unit noise of this shape."""
        return self.sampler(noise, class_labels, **options)
