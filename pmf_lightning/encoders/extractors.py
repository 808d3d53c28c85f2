"""Feature extractors from a small classifier of the run's data, and from any module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Features, Network, checksum
from pmf_lightning.encoders.classifier.train import VERSION, ClassifierSettings, cached_classifier
from pmf_lightning.utils.cache import digest
from pmf_lightning.utils.errors import UserError


@dataclass(frozen=True)
class ClassifierFeatures:
    """Last hidden layer of the small classifier of ``source``, which is trained in seconds and cached; no download.

    ``settings`` are those of ``metrics=small``, which uses the same classifier.
    """

    name: str
    settings: ClassifierSettings
    batch: int
    source: DataSource
    cache_dir: str | None

    @property
    def features(self) -> int:
        """Features per image."""
        return self.settings.features

    @property
    def logits(self) -> int:
        """Number of classes of the data."""
        return self.source.classes

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the data."""
        return (self.source.channels,)

    def check(self) -> None:
        """Raise UserError for data with fewer than two classes."""
        self.source.check()
        if self.source.classes < 2:
            raise UserError(f"extractor=classifier: data {self.source.name} has one class; choose another extractor")

    def fingerprint(self) -> str:
        """Return a text that identifies the data and the classifier's settings."""
        parts = (VERSION, self.source.fingerprint(), self.source.classes, *self.settings.key)
        return f"classifier of {self.source.name} {digest(*parts)[:16]}"

    def open(self, device: torch.device) -> Network:
        """Return the classifier on ``device``, read from the cache or trained."""
        classifier = cached_classifier(self.source, self.settings, self.cache_dir).to(device)

        def network(images: Tensor) -> Features:
            features = classifier.embed(images)
            return Features(features, classifier.head(features))

        return network


@dataclass(frozen=True)
class ModuleFeatures:
    """Features of any module or function from uint8 images [b, C, H, W] to floats [b, ``features``]."""

    name: str
    module: Callable[[Tensor], Tensor] | Any
    features: int
    batch: int
    channels: Sequence[int] = (1, 3)
    logits: int = 0

    def check(self) -> None:
        """Raise UserError if the module is not callable."""
        if not callable(self.module):
            raise UserError(f"extractor.module={self.module}: give a module or function of uint8 images")

    def fingerprint(self) -> str:
        """Return a text that identifies the module and its weights."""
        kind = self.module if hasattr(self.module, "__qualname__") else type(self.module)  # function, else instance
        weights = checksum(self.module)[:16] if isinstance(self.module, nn.Module) and self.module.state_dict() else ""
        return f"{self.name} {kind.__module__}.{kind.__qualname__} {weights}".rstrip()

    def open(self, device: torch.device) -> Network:
        """Return the frozen module on ``device``."""
        if isinstance(self.module, nn.Module):
            self.module.requires_grad_(False).eval().to(device)

        def network(images: Tensor) -> Features:
            features = self.module(images)
            if features.shape != (len(images), self.features):
                raise UserError(
                    f"extractor.features={self.features}: extractor {self.name} returned {tuple(features.shape)} for "
                    f"{len(images)} images"
                )
            return Features(features, None)

        return network
