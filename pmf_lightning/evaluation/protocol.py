"""Evaluation protocols of the papers: a protocol fixes everything but the images and is part of a score's name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pmf_lightning.data.transforms import QUANTISERS
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.utils.errors import UserError, suggestions

_ELSEWHERE = {"fid": "fd", "kid": "kd"}  # names of the distances in features other than Inception's


@dataclass(frozen=True)
class PublishedReference:
    """Published reference statistics of a protocol.

    Args:
        dialect: naming of the moments in the files (see references.DIALECTS).
        files: file names by resolution in pixels.
        where: how to obtain the files.
        others: other published files of the same images, with their resolutions.
        precision_recall: files of real images for precision and recall by resolution, if they are not in ``files``.
    """

    dialect: str
    files: Mapping[int, str]
    where: str
    others: Mapping[str, int] = field(default_factory=dict)
    precision_recall: Mapping[int, str] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, int]:
        """Resolution of every published file, by file name."""
        named = (self.files, self.precision_recall)
        return {name: side for files in named for side, name in files.items()} | dict(self.others)


@dataclass(frozen=True)
class Protocol:
    """Evaluation protocol of one family of papers; the numbers are in ``conf/protocol``.

    Args:
        name: part of the names of all scores.
        quantiser: rule from float to uint8 images, a name of ``data.transforms.QUANTISERS``.
        resize: rule to resize to Inception's 299 pixels, a name of ``encoders.resizes.RESIZES``.
        n: number of images of a full evaluation; image i has label ``i % classes``.
        extractor: network whose features the published numbers use.
        inception_splits, inception_shuffle: splits of the inception score, and whether images are shuffled first.
        kid_subsets, kid_size: number of subsets of KID and images per subset.
        neighbours: k of improved precision and recall.
        reference_images: largest number of real images for precision and recall.
        seed: seed of the shuffle and the subsets, for numpy's RandomState as in torch-fidelity.
        reference: the published statistics.
    """

    name: str
    quantiser: str
    resize: str
    n: int
    extractor: str
    inception_splits: int
    inception_shuffle: bool
    kid_subsets: int
    kid_size: int
    neighbours: int
    reference_images: int
    seed: int
    reference: PublishedReference

    def __post_init__(self) -> None:
        for name, rules in (("quantiser", QUANTISERS), ("resize", RESIZES)):
            if (rule := getattr(self, name)) not in rules:
                raise UserError(f"protocol.{name}={rule}: no such rule; {suggestions(str(rule), rules)}")
        for name in ("n", "kid_size"):
            if getattr(self, name) < 2:
                raise UserError(f"protocol.{name}={getattr(self, name)}: set it to 2 or more")
        for name in ("inception_splits", "kid_subsets", "neighbours", "reference_images"):
            if getattr(self, name) < 1:
                raise UserError(f"protocol.{name}={getattr(self, name)}: set it to 1 or more")


def score_name(score: str, protocol: Protocol, extractor: str, n: int) -> str:
    """Return a score's name with count and protocol: "fid50k_jit", or "fd360_classifier_jit" in other features.

    ``score`` is "fid", "is", "kid", "precision" or "recall". FID and KID imply Inception's features; in other features
    they are called "fd" and "kd".
    """
    count = count_name(n)
    if extractor == "inception":
        return f"{score}{count}_{protocol.name}"
    features = re.sub(r"\W+", "_", extractor.lower())
    return f"{_ELSEWHERE.get(score, score)}{count}_{features}_{protocol.name}"


def count_name(n: int) -> str:
    """Return a number of images as names of scores have it: "50k" or "360"."""
    return f"{n // 1000}k" if n and n % 1000 == 0 else str(n)
