"""Small convolutional classifier of uint8 images; Frechet distances use the features of its last hidden layer."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from pmf_lightning.utils.rng import generator


class Classifier(nn.Module):
    """Three convolutions, a hidden layer of ``features`` units and a linear head; no batch statistics, no dropout.

    The output for an image thus depends on that image only. The weights are sampled from ``seed``, never from the
    global generator. Images are uint8 [B, C, H, W] of any size. Images larger than ``side`` pixels are averaged down to
    it (area, so without aliasing); this also removes pixel noise, so evaluate at full size if noise matters. The
    architecture is ours: only its determinism matters, and the scale of its features is arbitrary.
    """

    def __init__(self, channels: int, classes: int, features: int, seed: int, side: int):
        super().__init__()
        self.side = side
        self.num_features = features
        with torch.device("meta"):  # building on a real device would advance the global generator
            self.body = nn.Sequential(
                nn.Conv2d(channels, 24, 5, stride=2, padding=2, bias=False),
                nn.GroupNorm(4, 24),
                nn.SiLU(),
                nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, 48),
                nn.SiLU(),
                nn.Conv2d(48, 96, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, 96),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(96 * 16, features),
                nn.SiLU(),
            )
            self.head = nn.Linear(features, classes)
        self.to(torch.float32).to_empty(device="cpu")
        self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int):
        """Initialise matrices and kernels by He's normal rule, each from its own stream; the rest to one or zero."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator(seed, "classifier", name))
            else:
                weight.fill_(float(name.endswith("weight")))

    def shrink(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c s s2"]:
        """Average images down to at most ``side`` pixels and scale them from 0..255 to [-1, 1]."""
        pixels = images.to(self.head.weight.dtype) / 127.5 - 1
        height, width = images.shape[-2:]
        if max(height, width) <= self.side:
            return pixels
        return functional.adaptive_avg_pool2d(pixels, (min(height, self.side), min(width, self.side)))

    def embed(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Return the features of the last hidden layer, ``num_features`` per image."""
        return self.body(self.shrink(images))

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return one logit per class."""
        return self.head(self.embed(images))
