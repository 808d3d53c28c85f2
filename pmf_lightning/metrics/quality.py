"""Quality in training on small data: Frechet distance and class accuracy by a classifier of the real images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from pmf_lightning.data.dataset import Source
from pmf_lightning.data.pixels import to_uint8
from pmf_lightning.errors import UserError
from pmf_lightning.metrics.classifier import Classifier
from pmf_lightning.metrics.frechet import FrechetDistance, check_finite, in_batches
from pmf_lightning.metrics.train_classifier import ClassifierSettings, cached_classifier

# (labels [B], number of the first image) -> float images [B, C, H, W] in about [-1, 1], unclipped
Generate = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class QualitySettings:
    """When and how to measure: every ``every_images`` training images, ``chunk`` images at a time.

    ``extra_steps`` are numbers of sampling steps to measure at besides, once at the end.
    """

    enabled: bool
    every_images: int
    extra_steps: Sequence[int]
    chunk: int
    classifier: ClassifierSettings

    def __post_init__(self) -> None:
        for name in ("every_images", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"metrics.{name}={getattr(self, name)}: set it to 1 or more")
        if any(steps < 1 for steps in self.extra_steps):
            raise UserError(f"metrics.extra_steps={list(self.extra_steps)}: each is 1 or more")


@dataclass(frozen=True)
class Quality:
    """What was measured on ``n`` generated images.

    ``fd`` is their Frechet distance to the training split, ``fd_floor`` that of the ``n`` held-out images.
    ``class_accuracy`` is how often the classifier sees the label that was asked for, ``real_accuracy`` its accuracy on
    the held-out images. ``per_class_accuracy`` has None where no image was asked for.
    """

    fd: float
    fd_floor: float
    n: int
    class_accuracy: float
    real_accuracy: float
    per_class_accuracy: list[float | None]


class Judge:
    """A classifier with the real images it compares with; what concerns these alone is computed once."""

    def __init__(
        self,
        classifier: Classifier,
        train_images: UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"],
        held_out_images: UInt8[Tensor, "m c h w"] | UInt8[np.ndarray, "m c h w"],
        held_out_labels: Int64[Tensor, " m"],
        batch: int,
    ) -> None:
        self.classifier, self.batch = classifier, batch
        self.held_out_images, self.held_out_labels = held_out_images, held_out_labels
        self.distance = FrechetDistance(classifier.embed, train_images, batch)

    @cached_property
    def floor(self) -> float:
        """Frechet distance of the held-out images to the training split."""
        return self.distance(self.held_out_images)

    @cached_property
    def real_accuracy(self) -> float:
        """Accuracy of the classifier on the held-out images."""
        return self._hits(self.held_out_images, self.held_out_labels).double().mean().item()

    def measure(self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Quality:
        """Judge generated images and the labels asked for.

        Raises ValueError unless they are as many and as large as the held-out images: the distance depends on both.
        """
        if images.shape != self.held_out_images.shape:
            raise ValueError(f"generated images are {tuple(images.shape)}, not {tuple(self.held_out_images.shape)}")
        hits, labels = self._hits(images, labels), labels.cpu()
        asked = [hits[labels == label] for label in range(self.classifier.head.out_features)]
        return Quality(
            fd=self.distance(images.cpu()),
            fd_floor=self.floor,
            n=len(images),
            class_accuracy=hits.double().mean().item(),
            real_accuracy=self.real_accuracy,
            per_class_accuracy=[rows.double().mean().item() if len(rows) else None for rows in asked],
        )

    @torch.no_grad()
    def _hits(self, images: Tensor | np.ndarray, labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
        with torch.autocast("cpu", enabled=False):
            seen = [self.classifier(part.cpu()).argmax(1) for part in in_batches(images, self.batch)]
        return torch.cat(seen) == labels.cpu()


class QualityProbe:
    """Measures a generator of ``source``'s images against them; the classifier and the floor are prepared once.

    Runs on the CPU without collective communication, so one process may measure alone.
    """

    def __init__(self, source: Source, settings: QualitySettings, cache_dir: str | None):
        self.source, self.settings, self.cache_dir = source, settings, cache_dir

    @cached_property
    def judge(self) -> Judge:
        """The prepared judge; the first use trains the classifier or reads it from the cache.

        Raises UserError for data that cannot be judged: fewer than two classes or two held-out images.
        """
        source, train, held_out = self.source, self.source.train(), self.source.held_out()
        if len(held_out) < 2:
            raise UserError(f"data {source.name} holds out {len(held_out)} image(s), give at least 2 or metrics=none")
        classifier = cached_classifier(source, self.settings.classifier, self.cache_dir)
        return Judge(classifier, train.images, held_out.images, held_out.labels, self.settings.chunk)

    def __call__(self, generate: Generate) -> Quality:
        """Generate as many images as are held out, labels in turn, and judge them.

        ``generate(labels, first)`` makes the images number ``first``, ``first + 1``, ... Raises NonFiniteError.
        """
        judge = self.judge
        labels = balanced_labels(len(judge.held_out_labels), self.source.classes)
        images, first = [], 0
        for part in labels.split(self.settings.chunk):
            images.append(_levels(generate(part, first)))
            first += len(part)
        return judge.measure(torch.cat(images), labels)


def _levels(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    check_finite(images, "generated images")
    return to_uint8(images.detach()).cpu()


def measure_quality(
    classifier: Classifier,
    train_images: UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"],
    held_out_images: UInt8[Tensor, "m c h w"] | UInt8[np.ndarray, "m c h w"],
    held_out_labels: Int64[Tensor, " m"],
    generated_images: UInt8[Tensor, "k c2 h2 w2"],
    generated_labels: Int64[Tensor, " k"],
    batch: int,
) -> Quality:
    """Judge one set of generated images; keep a ``Judge`` to judge several.

    Raises ValueError unless they are as many and as large as the held-out images.
    """
    judge = Judge(classifier, train_images, held_out_images, held_out_labels, batch)
    return judge.measure(generated_images, generated_labels)


def balanced_labels(n: int, classes: int) -> Int64[Tensor, " n"]:
    """Return the labels to ask for: the classes in turn, ``i % classes``."""
    return torch.arange(n) % classes


def metric_name(source: Source) -> str:
    """Return the distance's name in logs, ``fd_<data name>``: it is no FID, whose features are Inception's."""
    return "fd_" + re.sub(r"\W+", "_", source.name.lower())
