"""How published numbers are made: a protocol fixes everything but the images, and stands in the number's name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pmf_lightning.data.transforms import QUANTISERS
from pmf_lightning.encoders.resizes import RESIZES
from pmf_lightning.utils.errors import UserError, suggestions

_ELSEWHERE = {"fid": "fd", "kid": "kd"}  # what Inception's distances are called in other features


@dataclass(frozen=True)
class PublishedReference:
    """The statistics that a protocol's papers compare with.

    Args:
        dialect: how their file names the moments (see references.DIALECTS).
        files: their names by resolution in pixels.
        where: how they are obtained.
        others: names of further published files of the same images, with their resolutions.
        precision_recall: names of the files of real images for precision and recall, where they are not in ``files``.
    """

    dialect: str
    files: Mapping[int, str]
    where: str
    others: Mapping[str, int] = field(default_factory=dict)
    precision_recall: Mapping[int, str] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, int]:
        """The resolution of every published file by its name."""
        named = (self.files, self.precision_recall)
        return {name: side for files in named for side, name in files.items()} | dict(self.others)


@dataclass(frozen=True)
class Protocol:
    """The rules of one family of papers; ``conf/protocol`` holds the numbers.

    Args:
        name: stands in the names of all scores.
        quantiser: the rule from floats to whole levels, a name of ``data.pixels.QUANTISERS``.
        resize: the rule from there to the 299 pixels that Inception sees, a name of ``resizes.RESIZES``.
        n: images of a full evaluation; labels go through the classes in turn, ``i % classes``.
        extractor: the network whose features published numbers use.
        inception_splits, inception_shuffle: parts of the inception score, and whether images are shuffled before.
        kid_subsets, kid_size: subsets of the kernel distance and the images of each.
        neighbours: k of improved precision and recall.
        reference_images: how many real images these two compare with, at most.
        seed: of the shuffle and the subsets, by numpy's RandomState as in torch-fidelity.
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
    """Return a score's name with count and protocol: "fid50k_jit", and "fd360_classifier_jit" in other features.

    ``score`` is "fid", "is", "kid", "precision" or "recall". FID and KID are Inception's by name: in other features the
    first is "fd", the second "kd".
    """
    count = f"{n // 1000}k" if n and n % 1000 == 0 else str(n)
    if extractor == "inception":
        return f"{score}{count}_{protocol.name}"
    features = re.sub(r"\W+", "_", extractor.lower())
    return f"{_ELSEWHERE.get(score, score)}{count}_{features}_{protocol.name}"
