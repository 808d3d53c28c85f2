"""Small classifiers of uint8 images, convolutional or perceptron; distances use their last hidden layer."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from pmf_lightning.utils.rng import generator


class ImageClassifier(nn.Module):
    """Body with a last hidden layer of ``features`` units, and a linear head; no batch statistics, no dropout.

    The output for an image thus depends on that image only. The weights are sampled from ``seed``, never from the
    global generator. Images are uint8 [B, C, H, W] of any size. Images larger than ``side`` pixels are averaged down to
    it (area, so without aliasing); this also removes pixel noise, so evaluate at full size if noise matters. The
    architectures are ours: only their determinism matters, and the scale of the features is arbitrary.
    """

    def __init__(self, channels: int, classes: int, features: int, seed: int, side: int):
        super().__init__()
        self.side = side
        self.num_features = features
        with torch.device("meta"):  # building on a real device would advance the global generator
            self.body = self.make_body(channels, features)
            self.head = nn.Linear(features, classes)
        self.to(torch.float32).to_empty(device="cpu")
        self._draw_weights(seed)

    def make_body(self, channels: int, features: int) -> nn.Sequential:
        """Return the layers from images in [-1, 1] to ``features`` numbers."""
        raise NotImplementedError

    @torch.no_grad()
    def _draw_weights(self, seed: int):
        """Initialise matrices and kernels by He's normal rule, each from its own stream; the rest to one or zero."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator(seed, "classifier", name))
            else:
                weight.fill_(float(name.endswith("weight")))

    def shrink(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c s s2"]:
        """Scale images from 0..255 to [-1, 1] and average them down to at most ``side`` pixels."""
        return self.reduced(images.to(self.head.weight.dtype) / 127.5 - 1)

    def reduced(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c s s2"]:
        """Average images in [-1, 1] down to at most ``side`` pixels."""
        height, width = pixels.shape[-2:]
        if max(height, width) <= self.side:
            return pixels
        return functional.adaptive_avg_pool2d(pixels, (min(height, self.side), min(width, self.side)))

    def embed(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Return the features of the last hidden layer, ``num_features`` per image."""
        return self.body(self.shrink(images))

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return one logit per class."""
        return self.head(self.embed(images))


class Classifier(ImageClassifier):
    """Three convolutions with group norms, then a hidden layer."""

    def make_body(self, channels: int, features: int) -> nn.Sequential:
        """Return the layers."""
        return nn.Sequential(
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


class MLPClassifier(ImageClassifier):
    """Perceptron with two layers of 256 units on the pixels, averaged to 16 x 16, in front of the hidden layer.

    It has no convolutions. Its features thus differ from those of ``Classifier``: it can judge generators whose loss
    uses ``Classifier``.
    """

    def make_body(self, channels: int, features: int) -> nn.Sequential:
        """Return the layers."""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(16),
            nn.Flatten(),
            nn.Linear(channels * 16**2, 256),
            nn.LayerNorm(256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.LayerNorm(256),
            nn.SiLU(),
            nn.Linear(256, features),
            nn.SiLU(),
        )


ARCHITECTURES = {"convolutional": Classifier, "mlp": MLPClassifier}
