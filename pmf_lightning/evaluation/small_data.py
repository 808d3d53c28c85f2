"""Evaluation during training on small data: Frechet distance and class accuracy by a classifier of real images."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.data.dataset import DataSource, ImageDataset, first_images
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.encoders.base import Extractor, check_channels, extract
from pmf_lightning.encoders.build import complete
from pmf_lightning.encoders.classifier.network import ImageClassifier
from pmf_lightning.encoders.classifier.train import ClassifierSettings, cached_classifier
from pmf_lightning.evaluation.frechet import LATE_BAR, Embed, FrechetDistance, Pictures, check_finite, in_batches
from pmf_lightning.evaluation.metric_settings import check_metric_settings
from pmf_lightning.evaluation.moments import FeatureStatistics
from pmf_lightning.evaluation.references import cached_file, cached_moments
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

# (labels [B], number of the first image) -> float images [B, C, H, W] in about [-1, 1], unclipped
Generate = Callable[[Tensor, int], Tensor]
# uint8 images [B, C, H, W] -> logits [B, K], on the CPU
Classify = Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b k"]]


@dataclass(frozen=True)
class SmallDataSettings:
    """Settings of the evaluation: after every ``every_images`` training images, ``batch_size`` images at a time.

    ``extra_steps`` are additional numbers of sampling steps, evaluated once at the end. The reference is the first
    ``reference_images`` images of the training split (None: all). ``extractors`` are further feature networks by name,
    from ``conf/extractor``; the distance in each is ``fd_<name>``.
    """

    enabled: bool
    every_images: int
    extra_steps: Sequence[int]
    batch_size: int
    classifier: ClassifierSettings
    reference_images: int | None = None
    extractors: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"every_images": 1, "batch_size": 1, "reference_images": 2}
        check_metric_settings(self, least, may_be_null=["reference_images"])


@dataclass(frozen=True)
class SmallDataScores:
    """Scores of ``n`` generated images.

    ``fd`` is their Frechet distance to the training split (or its first ``reference_images``), ``fd_floor`` that of the
    ``n`` held-out images. ``class_accuracy`` is the fraction of images that the classifier assigns to the requested
    label, ``real_accuracy`` its accuracy on the held-out images. ``per_class_accuracy`` has None for classes without
    images. With one class there is no accuracy: both are None, and the list is empty. ``others`` are the distances in
    further features by name ("fd_lite0"), ``other_floors`` those of the held-out images.
    """

    fd: float
    fd_floor: float
    n: int
    class_accuracy: float | None
    real_accuracy: float | None
    per_class_accuracy: list[float | None]
    others: dict[str, float] = field(default_factory=dict)
    other_floors: dict[str, float] = field(default_factory=dict)


class RealImageScorer:
    """Classifier with the real images of the comparison; scores of the real images are computed once.

    ``labelled`` is False if the classifier does not know the labels: then only distances are measured. ``others`` are
    distances to the same real images in further features, by name.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        train_images: Pictures,
        held_out_images: UInt8[Tensor, "m c h w"] | UInt8[np.ndarray, "m c h w"] | ImageDataset,
        held_out_labels: Int64[Tensor, " m"],
        batch: int,
        labelled: bool = True,
        others: Mapping[str, FrechetDistance] | None = None,
    ) -> None:
        self.classifier, self.batch, self.labelled = classifier, batch, labelled
        self.held_out_images, self.held_out_labels = held_out_images, held_out_labels
        self.shape = (len(held_out_images), *next(in_batches(held_out_images, 1)).shape[1:])
        self.distance = FrechetDistance(classifier.embed, train_images, batch)
        self.others = dict(others or {})

    @cached_property
    def other_floors(self) -> dict[str, float]:
        """Distance of the held-out images to the training split in each of the other features."""
        return {name: distance.of_real(self.held_out_images, "held-out") for name, distance in self.others.items()}

    @cached_property
    def floor(self) -> float:
        """Frechet distance of the held-out images to the training split."""
        return self.distance(self.held_out_images)

    @cached_property
    def real_accuracy(self) -> float | None:
        """Accuracy of the classifier on the held-out images; None without labels."""
        if not self.labelled:
            return None
        parts, labels = in_batches(self.held_out_images, self.batch), self.held_out_labels.split(self.batch)
        hits = [hits_of(self.classifier, *pair) for pair in zip(parts, labels, strict=True)]
        return torch.cat(hits).double().mean().item()

    def measure_parts(self, parts: Iterable[tuple[Tensor, Tensor]]) -> SmallDataScores:
        """Score uint8 generated images, given in parts with the requested labels; no part is stored.

        Raises ValueError unless their number and size equal those of the held-out images: the distance depends on both.
        """
        hits, labels, sums = [], [], self.distance.new_sums()
        others = {name: distance.new_sums() for name, distance in self.others.items()}
        for images, requested in parts:
            self._check((self.shape[0], *images.shape[1:]))
            known = hits_of(self.classifier, images, requested) if self.labelled else torch.zeros(len(images)) > 0
            hits.append(known)
            labels.append(requested.cpu())
            for each in (sums, *others.values()):
                each.add(images.cpu())
        distance = self.distance.of_sums(sums)
        hits, labels = torch.cat(hits), torch.cat(labels)
        self._check((len(labels), *self.shape[1:]))
        classes = self.classifier.head.out_features if self.labelled else 0
        by_class = [hits[labels == label] for label in range(classes)]
        return SmallDataScores(
            fd=distance,
            fd_floor=self.floor,
            n=len(labels),
            class_accuracy=hits.double().mean().item() if self.labelled else None,
            real_accuracy=self.real_accuracy,
            per_class_accuracy=[rows.double().mean().item() if len(rows) else None for rows in by_class],
            others={name: self.others[name].of_sums(sums) for name, sums in others.items()},
            other_floors=self.other_floors,
        )

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(f"generated images are {shape}, not {self.shape}")


class SmallDataEvaluator:
    """Evaluator of a generator against ``source``'s images; the classifier and ``fd_floor`` are computed once.

    It runs without communication, so one process may evaluate while others do not: the classifier on the CPU,
    ``settings.extractors`` on ``device``. The moments of real images in their features are cached for later runs.
    Raises UserError if the weights of an extractor are missing or it does not take such images.
    """

    def __init__(self, source: DataSource, settings: SmallDataSettings, cache_dir: str | None):
        self.source, self.settings, self.cache_dir = source, settings, cache_dir
        self.device = torch.device("cpu")
        self.extractors = {
            name: _complete(name, extractor, source, cache_dir) for name, extractor in settings.extractors.items()
        }

    @cached_property
    def scorer(self) -> RealImageScorer:
        """The ``RealImageScorer``; the first access trains the classifier or reads it from the cache.

        Raises UserError for data with fewer than two held-out images.
        """
        source, train, held_out = self.source, self.source.train(), self.source.held_out()
        if len(held_out) < 2:
            raise UserError(
                f"data {source.name} holds out {counted(len(held_out), 'image')}, give at least 2 or metrics=none"
            )
        classifier = cached_classifier(source, self.settings.classifier, self.cache_dir)
        if self.settings.reference_images is not None:
            train = first_images(train, self.settings.reference_images)
        named = {f"fd_{name}": extractor for name, extractor in self.extractors.items()}
        others = {name: self._distance(name, extractor, train) for name, extractor in named.items()}
        labelled = source.classes > 1
        return RealImageScorer(classifier, train, held_out, held_out.labels, self.settings.batch_size, labelled, others)

    def _distance(self, name: str, extractor: Extractor, train: ImageDataset) -> FrechetDistance:
        embed = _embed(extractor, self.device)
        return FrechetDistance(embed, train, self.settings.batch_size, name, partial(self._stored, extractor))

    def _stored(self, extractor: Extractor, what: str, measure: Callable[[], FeatureStatistics]) -> FeatureStatistics:
        first = self.settings.reference_images if what == "reference" else None
        # the number of images at a time and the device, since the last bits depend on them
        place = (self.settings.batch_size, self.device.type)
        key = ("moments", self.source.fingerprint(), extractor.fingerprint(), what, first, *place)
        return cached_moments(cached_file(self.cache_dir, *key), extractor.name, measure)

    def __call__(self, generate: Generate) -> SmallDataScores:
        """Generate as many images as are held out, with labels ``i % classes``, and return their scores.

        ``generate(labels, first)`` returns the images number ``first``, ``first + 1``, ... Raises NonFiniteError.
        """
        scorer = self.scorer
        labels = balanced_labels(len(scorer.held_out_labels), self.source.classes)
        firsts = tqdm(range(0, len(labels), self.settings.batch_size), "evaluating", unit="batch", **LATE_BAR)
        parts = zip(firsts, labels.split(self.settings.batch_size), strict=True)
        return scorer.measure_parts((_levels(generate(part, first)), part) for first, part in parts)


def _complete(name: str, extractor: Any, source: DataSource, cache_dir: str | None) -> Extractor:
    extractor = complete(extractor, source, cache_dir)
    extractor.check()
    check_channels(extractor, source.channels, f"metrics.extractors.{name}", f"data {source.name} has", "leave it out")
    return extractor


def _embed(extractor: Extractor, device: torch.device) -> Embed:
    network = extractor.open(device)
    return lambda images: extract(network, images, extractor.batch, device).features


@torch.no_grad()
def hits_of(classify: Classify, images: UInt8[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Return for each image whether its largest logit is that of its label, on the CPU."""
    with torch.autocast("cpu", enabled=False):
        return classify(images.cpu()).argmax(1) == labels.cpu()


def _levels(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    check_finite(images, "generated images")
    return to_uint8(images.detach()).cpu()


def balanced_labels(n: int, classes: int) -> Int64[Tensor, " n"]:
    """Return ``n`` balanced labels: ``i % classes``."""
    return torch.arange(n) % classes


def metric_name(source: DataSource) -> str:
    """Return the distance's name in logs, ``fd_<data name>``; it is not an FID, which uses Inception's features."""
    return "fd_" + re.sub(r"\W+", "_", source.name.lower())
