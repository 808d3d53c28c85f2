"""Scores of one set of samples in all encoders of a battery, their means, and their names with the protocol."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

from pmf_lightning.evaluation.battery.encode import PIXELS, PRECISIONS
from pmf_lightning.evaluation.protocol import count_name
from pmf_lightning.utils.errors import UserError

HELD_OUT, TRAINED = "held out", "trained"
Ratio = Literal["fdr", "swr"]
SHORT = {"fdr": "fdr", "swr": "sw_r"}  # in names of means
FULL_SW = 14  # encoders of RDM's SW_r14
FLAGS = {
    "few-samples": "fewer samples than features + 1 in an encoder: covariances are singular, distances biased upwards",
    "other-count": "samples and validation images differ in number: distances fall with the number, so does the ratio",
    "published-floor": "divided by published distances of validation images, which hold for their own protocol only",
    "unbalanced-labels": "the number of samples is no multiple of the number of classes",
    "missing-encoders": "the sliced mean is over fewer encoders than the 14 of RDM's SW_r14",
}


@dataclass(frozen=True)
class JudgeProtocol:
    """How samples are judged; part of the names of all scores, since every distance depends on it.

    Args:
        pixels: "float" clamps samples to their range (FD-loss, RDM); "uint8" also rounds them, as image files do.
        precision: of the encoders, "float32" or "bfloat16" (autocast; FD-loss and RDM evaluate so).
        directions: of the sliced Wasserstein distance; 0: it is not computed.
        sliced_images: largest size of its sets.
        published_floors: whether FD is divided by given distances of validation images, in place of measured ones.
    """

    pixels: str = "float"
    precision: str = "float32"
    directions: int = 1024
    sliced_images: int = 16_384
    published_floors: bool = False

    def __post_init__(self) -> None:
        for name, known in (("pixels", PIXELS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"judge.{name}={getattr(self, name)}: use {' or '.join(known)}")
        if self.directions < 0 or self.sliced_images < 2:
            raise UserError(
                f"judge.directions={self.directions} judge.sliced_images={self.sliced_images}: give 0 (none) or more "
                "directions, and 2 or more images"
            )

    def name(self, ratio: Ratio, encoders: int, n: int, mark: str | None = None) -> str:
        """Return the name of a mean ratio over ``encoders`` that are all marked ``mark`` (None: all there are).

        Examples are "fdr6_50k_float_bf16", "fdr3_held_out_50k_float_bf16" and "fdr6_published_50k_float_bf16".
        """
        parts = [f"{SHORT[ratio]}{encoders}"]
        if mark is not None:
            parts.append(mark.replace(" ", "_"))
        if self.published_floors and ratio == "fdr":
            parts.append("published")
        return "_".join([*parts, count_name(n), self.pixels, PRECISIONS[self.precision]])


@dataclass(frozen=True)
class EncoderScores:
    """Distances of samples to the training images in one encoder, and their ratios to those of validation images.

    ``fd`` and ``sw`` are in the units of the features (squared, for ``fd``). The sliced numbers are None without rows
    of real features. ``spread`` is that of the FD ratio of real images (``distances.spread``), None if not measured.
    """

    fd: float
    fd_floor: float
    trained: bool
    sw: float | None = None
    sw_floor: float | None = None
    spread: float | None = None

    @property
    def fdr(self) -> float:
        """FD(samples, train) / FD(validation, train)."""
        return self.fd / self.fd_floor

    @property
    def swr(self) -> float | None:
        """SW(samples, train) / SW(validation, train)."""
        return None if self.sw is None or self.sw_floor is None else self.sw / self.sw_floor

    @property
    def mark(self) -> str:
        """Whether the loss of the checkpoint uses the encoder: "trained" or "held out"."""
        return TRAINED if self.trained else HELD_OUT


@dataclass(frozen=True)
class BatteryScores:
    """Scores of ``n`` samples by encoder; ``sliced_n`` is the size of the sets of the sliced distances.

    ``class_accuracy`` is the fraction of samples that a classifier of the data assigns to the requested label,
    ``real_accuracy`` its accuracy on the validation images; None without such a classifier.
    """

    encoders: Mapping[str, EncoderScores]
    n: int
    protocol: JudgeProtocol
    sliced_n: int | None = None
    class_accuracy: float | None = None
    real_accuracy: float | None = None
    flags: Collection[str] = field(default=())

    def mean(self, ratio: Ratio, mark: str | None = None) -> float | None:
        """Return the mean ratio over all encoders, or over those marked "trained" or "held out"; None without any."""
        found = [getattr(one, ratio) for one in self.encoders.values() if mark in (None, one.mark)]
        found = [value for value in found if value is not None]
        return fmean(found) if found else None

    def count(self, ratio: Ratio, mark: str | None = None) -> int:
        """Return the number of encoders in such a mean."""
        marked = [one for one in self.encoders.values() if mark in (None, one.mark)]
        return sum(getattr(one, ratio) is not None for one in marked)

    @property
    def judged(self) -> float:
        """The mean FD ratio of the held-out encoders, of all if the loss uses all of them: the number to compare."""
        return self.mean("fdr", HELD_OUT) or self.mean("fdr")

    def named(self) -> dict[str, float]:
        """Return the means by name with the protocol, such as "fdr6_50k_float_bf16", and the class accuracy.

        Where the loss uses some of the encoders, there are also the means of each mark: "fdr3_held_out_50k_...".
        """
        sizes = {"fdr": self.n, "swr": self.sliced_n}
        marks = [None, TRAINED, HELD_OUT] if len({one.trained for one in self.encoders.values()}) == 2 else [None]
        found = {}
        for ratio, size in sizes.items():
            for mark in marks:
                if (value := self.mean(ratio, mark)) is not None:
                    found[self.protocol.name(ratio, self.count(ratio, mark), size, mark)] = value
        accuracies = {"class_accuracy": self.class_accuracy, "real_accuracy": self.real_accuracy}
        return found | {name: value for name, value in accuracies.items() if value is not None}

    def by_encoder(self) -> dict[str, float]:
        """Return the ratios of every encoder, by names with its mark: "fdr_held_out_mae", "swr_trained_classifier0"."""
        found = {}
        for ratio in ("fdr", "swr"):
            for name, one in self.encoders.items():
                if (value := getattr(one, ratio)) is not None:
                    found[f"{ratio}_{one.mark.replace(' ', '_')}_{name}"] = value
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        encoders = {
            name: asdict(one) | {"fdr": one.fdr, "swr": one.swr, "mark": one.mark}
            for name, one in self.encoders.items()
        }
        return {
            "n": self.n,
            "sliced_n": self.sliced_n,
            "judged_ratio": self.judged,
            "class_accuracy": self.class_accuracy,
            "real_accuracy": self.real_accuracy,
            "encoders": encoders,
            "flags": list(self.flags),
        }
