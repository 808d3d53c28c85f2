"""Build an evaluator from its parts, after all checks that are possible before long work."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Extractor, check_channels
from pmf_lightning.encoders.build import complete
from pmf_lightning.evaluation.evaluator import Evaluator, check_same_features
from pmf_lightning.evaluation.protocol import Protocol
from pmf_lightning.evaluation.real_images import OPTION, RealImages, load_real_images
from pmf_lightning.evaluation.references import Reference, load_reference
from pmf_lightning.evaluation.statistics import cached_statistics
from pmf_lightning.utils.errors import UserError

DATA = "data"  # as a reference: the training split of the configured data


def complete_extractor(extractor: Extractor | partial, source: DataSource | None, cache_dir: str | None) -> Extractor:
    """Return the checked extractor; one that depends on the data (``_partial_``) is completed with ``source``.

    Raises UserError if it needs data and there are none, or if its weights are missing.
    """
    extractor = complete(extractor, source, cache_dir)
    extractor.check()
    return extractor


def open_evaluator(
    protocol: Protocol,
    extractor: Extractor | partial,
    reference: str | Path | Reference | None,
    *,
    batch_size: int,
    device: torch.device | str,
    resolution: int,
    classes: int | None,
    channels: int = 3,
    crop: str | None = None,
    precision_recall_reference: str | Path | None = None,
    source: DataSource | None = None,
    cache_dir: str | None = None,
) -> Evaluator:
    """Build an ``Evaluator`` for images of ``resolution`` pixels and ``classes`` classes. All ranks must call it.

    Args:
        extractor: from ``conf/extractor``; completed with ``source`` and ``cache_dir``.
        reference: a file of statistics, or "data" for those of the training split of ``source``, which are measured
            once (the only long work here) and cached.
        resolution, classes, channels, crop: of the images; classes and crop are None if unknown.
        precision_recall_reference: a file of real images or of their features for precision and recall; None: those
            of the reference, if it has any.

    Raises UserError if a file is missing or damaged, or if reference, extractor and images do not fit together.
    """
    extractor = complete_extractor(extractor, source, cache_dir)
    remedy = "choose another extractor, or the data it is made for"
    check_channels(extractor, channels, f"extractor={extractor.name}", "these have", remedy)
    if reference is None:
        raise UserError(missing_reference(protocol, resolution))
    if reference == DATA:
        if source is None:
            raise UserError("reference=data: no data are configured; set data=, or give a file of statistics")
        reference = cached_statistics(source, extractor, batch_size, protocol.reference_images, device, cache_dir)
    elif not isinstance(reference, Reference):
        reference = load_reference(reference, extractor.name, protocol.reference_images)
    check_same_features(reference, extractor, protocol.name)
    expected = {"resolution": resolution, "classes": classes, "crop": crop}
    check_same_images(reference, protocol, expected)
    real = None
    if precision_recall_reference is not None:
        real = load_real_images(precision_recall_reference, protocol.reference_images)
        check_same_images(real, protocol, expected, OPTION)
    return Evaluator(protocol, extractor, reference, batch_size, device, real)


@dataclass(frozen=True)
class EvaluatorSetup:
    """An evaluator before the device is known; the arguments are those of ``open_evaluator``."""

    protocol: Protocol
    extractor: Extractor | partial
    reference: str | None
    batch_size: int
    resolution: int
    channels: int
    classes: int
    source: DataSource
    cache_dir: str | None

    @property
    def extractor_name(self) -> str:
        """The name of the feature extractor; one that is completed with the data has it among its arguments."""
        return self.extractor.keywords["name"] if isinstance(self.extractor, partial) else self.extractor.name

    def check(self) -> None:
        """Check all that needs no long work; raises UserError. Statistics of the data are not computed."""
        if self.reference == DATA:
            complete_extractor(self.extractor, self.source, self.cache_dir)
        else:
            self.open(torch.device("cpu"))

    def open(self, device: torch.device) -> Evaluator:
        """Build the evaluator on a device. All ranks must call it. Raises UserError."""
        options = {name: getattr(self, name) for name in ("batch_size", "resolution", "channels", "classes", "source")}
        parts = self.protocol, self.extractor, self.reference
        return open_evaluator(*parts, device=device, cache_dir=self.cache_dir, **options)


def missing_reference(protocol: Protocol, resolution: int) -> str:
    """Return the error text for a missing reference: the protocol's file of statistics, and other ways to get one."""
    files = protocol.reference.files
    known = files.get(resolution) or ", ".join(f"{name} ({side} px)" for side, name in files.items())
    return (
        f"reference is not set; protocol={protocol.name} compares with {known}, from {protocol.reference.where}; or "
        "make one with pmf_lightning.make_stats, or set reference=data for the training split of the data"
    )


def check_same_images(
    reference: Reference | RealImages, protocol: Protocol, expected: dict[str, Any], option: str = "reference"
) -> None:
    """Raise UserError if a reference, by its metadata or its published name, is of other images than ``expected``.

    ``expected`` holds resolution, classes and crop, None if unknown. ``option`` is the option that names the file.
    """
    path = reference.file.get("path", "in memory")
    stated = dict(reference.about)
    if not stated:
        if (side := protocol.reference.sides.get(Path(path).name)) is not None:
            stated["resolution"] = side
        elif reference.images is not None:
            stated["resolution"] = reference.images.shape[-1]
    for name, value in expected.items():
        if value is not None and stated.get(name) is not None and stated[name] != value:
            raise UserError(
                f"{option}={path}: {name} is {stated[name]} in the file and {value} here; give the statistics of the "
                "same images, or make them with pmf_lightning.make_stats"
            )
