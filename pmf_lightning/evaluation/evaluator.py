"""Evaluator: generate images, extract features, compute scores; the result is the same for any number of ranks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pmf_lightning.data.transforms import QUANTISERS
from pmf_lightning.distributed.collectives import on_all_ranks, on_rank_zero
from pmf_lightning.encoders.base import Extractor, Features, Network, extract
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.evaluation.frechet import check_finite
from pmf_lightning.evaluation.moments import FeatureStatistics, Moments, measured_in_chunks
from pmf_lightning.evaluation.protocol import Protocol, score_name
from pmf_lightning.evaluation.real_images import OPTION, RealImages
from pmf_lightning.evaluation.references import Reference
from pmf_lightning.evaluation.scores import Scores, score
from pmf_lightning.evaluation.small_data import balanced_labels
from pmf_lightning.utils.errors import UserError

# (labels [b], number of the first image) -> float images [b, C, H, W] in about [-1, 1], unclipped, on any device; or
# uint8 images, which are used unchanged.
Generate = Callable[[Int64[Tensor, " b"], int], Tensor]
# Callback for the images of this rank: (uint8 images [b, C, H, W], labels [b], number of the first image)
SaveImages = Callable[[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"], int], None]


class Evaluator:
    """Evaluator of generators by one protocol, one extractor and one reference.

    Under torch.distributed every rank must call it; all get the same scores. Images are generated in chunks of
    ``batch_size``, which are assigned to the ranks round-robin, so images and features do not depend on the number of
    ranks. Torch's global random numbers are not used. Construct it before long work: it checks that the reference has
    the features of the extractor. Precision and recall use the ``real`` images, if given, in place of the reference's.

    Raises UserError if protocol, extractor and reference do not fit together.
    """

    def __init__(
        self,
        protocol: Protocol,
        extractor: Extractor,
        reference: Reference,
        batch_size: int,
        device: torch.device | str = "cpu",
        real: RealImages | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: at least one image at a time is needed")
        if (resize := getattr(extractor, "resize", protocol.resize)) != protocol.resize:
            raise UserError(
                f"extractor.resize={resize}: protocol={protocol.name} resizes by {protocol.resize}; leave "
                "extractor.resize out, or set protocol.resize"
            )
        check_same_features(reference, extractor, protocol.name)
        if real is not None:
            check_real_images(real, extractor, protocol.name)
        self.protocol, self.extractor, self.reference, self.real = protocol, extractor, reference, real
        self.batch_size, self.device = batch_size, torch.device(device)

    @cached_property
    def network(self) -> Network:
        """The extractor's network, opened at first use."""
        return on_all_ranks(lambda: self.extractor.open(self.device))

    def name(self, n: int, what: str = "fid") -> str:
        """Return the name of a score of ``n`` images: "fid50k_jit"."""
        return score_name(what, self.protocol, self.extractor.name, n)

    def without_features(self) -> "Evaluator":
        """Return an evaluator for the Frechet distance and the inception score only, which stores no features.

        It shares the network, which is opened now. All ranks must call it.
        """
        reduced = Evaluator(
            self.protocol,
            self.extractor,
            replace(self.reference, features=None, images=None),
            self.batch_size,
            self.device,
        )
        reduced.network = self.network
        return reduced

    def __call__(self, generate: Generate, n: int, classes: int, save: SaveImages | None = None) -> Scores:
        """Generate ``n`` images with labels ``i % classes`` and return their scores against the reference.

        ``generate(labels, first)`` returns the images number ``first``, ``first + 1``, ... Raises UserError for n < 2.
        If pixels are not finite or a rank fails, all ranks raise NonFiniteError or UserError.
        """
        measured = self.measure(generate, n, classes, save)
        real, compared = self.reference_features, self.precision_recall_features
        scores = on_rank_zero(lambda: score(measured, self.reference, real, self.protocol, self.device, compared))
        return self._flagged(scores, classes)

    def measure(self, generate: Generate, n: int, classes: int, save: SaveImages | None = None) -> FeatureStatistics:
        """Generate like ``__call__``; return moments, logits and, if there are real features to compare, features."""
        if n < 2:
            raise UserError(f"n={n}: a distance needs at least two images")
        labels, to_levels = balanced_labels(n, classes), QUANTISERS[self.protocol.quantiser]

        def levels(first: int, end: int) -> Tensor:
            images = generate(labels[first:end], first).detach()
            if images.dtype != torch.uint8:
                check_finite(images, f"generated images {first} to {end - 1}")
                images = to_levels(images)
            if save is not None:
                save(images.cpu(), labels[first:end], first)
            return images

        compared = any(x is not None for x in (self.reference.features, self.reference.images, self.real))
        return measure(
            levels, n, self.batch_size, self.extractor, self.network, self.device, "all" if compared else None
        )

    @cached_property
    def reference_features(self) -> Float[Tensor, "m f"] | None:
        """Features of the reference, or extracted from its images by all ranks."""
        return self._features_of(self.reference)

    @cached_property
    def precision_recall_features(self) -> Float[Tensor, "m f"] | None:
        """Real features for precision and recall: those of ``real`` if given, otherwise those of the reference."""
        return self.reference_features if self.real is None else self._features_of(self.real)

    def _features_of(self, real: Reference | RealImages) -> Float[Tensor, "m f"] | None:
        if real.features is not None or real.images is None:
            return real.features
        images = real.images[: self.protocol.reference_images]
        parts = (self.extractor, self.network, self.device, "all", "reference images")
        return measure(lambda first, end: images[first:end], len(images), self.batch_size, *parts).features

    def _flagged(self, scores: Scores, classes: int) -> Scores:
        flags = list(scores.flags)
        if scores.n != self.protocol.n:
            flags.append("not-full-count")
        if scores.n % classes:
            flags.append("unbalanced-labels")
        if self.extractor.name != self.protocol.extractor:
            flags.append("other-extractor")
        elif Path(self.reference.file.get("path", "")).name not in self.protocol.reference.sides:
            flags.append("other-reference")
        return replace(scores, flags=tuple(flags))


def measure(
    levels: Callable[[int, int], UInt8[Tensor, "b c h w"]],
    n: int,
    batch_size: int,
    extractor: Extractor,
    network: Network,
    device: torch.device,
    stored_rows: Int64[Tensor, " m"] | str | None,
    title: str = "images",
) -> FeatureStatistics:
    """Compute statistics of images number 0 to n - 1, from ``levels(first, end)`` in chunks split over the ranks.

    ``stored_rows`` holds the numbers of the images whose features are stored, "all" or None. ``title`` is that of the
    progress bar.
    """
    moments = {extractor.name: Moments(extractor.features, extractor.logits, stored_rows).to(device)}

    def encode(first: int, end: int) -> dict[str, Features]:
        return {extractor.name: extract(network, levels(first, end), extractor.batch, device)}

    return measured_in_chunks(encode, moments, n, batch_size, title)[extractor.name]


def check_same_features(reference: Reference, extractor: Extractor, protocol: str) -> None:
    """Raise UserError unless a reference has the features of ``extractor``, as far as its metadata state them.

    ``protocol`` is the name of the extractor's protocol.
    """
    path = reference.file.get("path", "in memory")
    if len(reference.mu) != extractor.features:
        raise UserError(
            f"reference={path}: moments of {len(reference.mu)} features, extractor={extractor.name} makes "
            f"{extractor.features}; choose the extractor it was made with, or make it again with make_stats"
        )
    _check_fingerprint(reference.about, f"reference={path}", extractor, protocol)


def check_real_images(real: RealImages, extractor: Extractor, protocol: str) -> None:
    """Raise UserError unless the real images for precision and recall have, or can get, features of ``extractor``."""
    path = real.file.get("path", "in memory")
    if real.images is not None and real.images.shape[1] not in extractor.channels:
        raise UserError(
            f"{OPTION}={path}: images of {real.images.shape[1]} channels, extractor={extractor.name} sees "
            f"{' or '.join(map(str, extractor.channels))}; give the features that make_stats stores"
        )
    if real.features is not None:
        if real.features.shape[1] != extractor.features:
            raise UserError(
                f"{OPTION}={path}: {real.features.shape[1]} features, extractor={extractor.name} makes "
                f"{extractor.features}; make it again with make_stats"
            )
        _check_fingerprint(real.about, f"{OPTION}={path}", extractor, protocol)


def _check_fingerprint(about: Mapping[str, Any], what: str, extractor: Extractor, protocol: str) -> None:
    """Raise UserError if features come from another extractor than ``extractor``; ``what`` names option and file."""
    theirs, ours = about.get("extractor"), extractor.fingerprint()
    if theirs is None or theirs == ours:
        return
    remedy = "choose the extractor (or its weights) it was made with, or make it again with make_stats"
    if (resize := getattr(extractor, "resize", None)) is not None and _without_resize(theirs) == _without_resize(ours):
        remedy = f"the images were resized differently; make it again with make_stats protocol={protocol} ({resize})"
    raise UserError(f"{what}: made with the features {theirs}, extractor={extractor.name} is {ours}; {remedy}")


def _without_resize(fingerprint: str) -> list[str]:
    return [word for word in fingerprint.split() if word not in RESIZES]
