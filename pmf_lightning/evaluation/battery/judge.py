"""Judge: score one set of samples in all encoders of a battery, in one pass; the same for any number of ranks."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.distributed.collectives import on_rank_zero, total
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.evaluation.battery.distances import SEED, SlicedReference, spread
from pmf_lightning.evaluation.battery.encode import BatteryEncoder
from pmf_lightning.evaluation.battery.scores import FULL_SW, BatteryScores, EncoderScores, JudgeProtocol
from pmf_lightning.evaluation.evaluator import Generate, SaveImages
from pmf_lightning.evaluation.frechet import check_finite, in_batches
from pmf_lightning.evaluation.moments import FeatureStatistics, Gaussian
from pmf_lightning.evaluation.small_data import Classify, balanced_labels, hits_of
from pmf_lightning.objectives.discrepancies.kernels import random_rows
from pmf_lightning.objectives.discrepancies.populations import batch_statistics
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.utils.errors import UserError


class Judge:
    """Judge of generators by the encoders of a battery. Under torch.distributed every rank must call it.

    Images are generated in chunks of ``batch_size``, assigned to the ranks round-robin. Every encoder sees the same
    images, which are generated once and not stored. Torch's global random numbers are not used.

    Args:
        battery: the encoders, on ``device``.
        train: the training images in each encoder: moments, and rows for the sliced distances.
        held_out: the validation images, by which distances are divided; they are measured once, at first use.
        protocol: how samples become features.
        floors: distances of validation images by encoder, in place of measured ones; None: all are measured.
        trained: the encoders that the loss of the generator uses.
        classify: a classifier of the data, or None.
        spread_draws: random halvings of the validation images that measure the spread of real images' ratios; 0: none.

    Raises UserError for an encoder without reference or floor, and references of other features.
    """

    def __init__(
        self,
        battery: Battery,
        train: Mapping[str, RealFeatures],
        held_out: ImageDataset | None,
        protocol: JudgeProtocol,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        floors: Mapping[str, float] | None = None,
        trained: Collection[str] = (),
        classify: Classify | None = None,
        spread_draws: int = 0,
    ) -> None:
        self.battery, self.held_out, self.trained = battery, held_out, frozenset(trained)
        self.batch_size, self.classify, device = batch_size, classify, torch.device(device)
        self.floors, self.spread_draws = dict(floors or {}), spread_draws
        self.protocol = replace(protocol, published_floors=bool(self.floors))
        self.names = tuple(train)
        if held_out is None and (missing := [name for name in train if name not in self.floors]):
            raise UserError(
                f"battery.floors: no distance of validation images for {', '.join(missing)}, and the data hold out no "
                "images to measure it; give them, or data with held-out images"
            )
        self.train = {name: Gaussian(*real.moments()) for name, real in train.items()}
        widths = {name: len(real.mu) for name, real in self.train.items()}
        self.encode = BatteryEncoder(battery, widths, protocol.pixels, protocol.precision, device)
        settings = protocol.directions, protocol.sliced_images, device
        sliced = protocol.directions > 0 and held_out is not None
        self.sliced = {
            name: SlicedReference(real.rows, *settings)
            for name, real in train.items()
            if sliced and real.rows is not None
        }
        self._found: dict[tuple[str, str, int], float] = {}  # numbers of real images, by what, encoder and count

    def __call__(
        self, generate: Generate, n: int, classes: int | None, save: SaveImages | None = None
    ) -> BatteryScores:
        """Generate ``n`` images with labels ``i % classes`` (None: unknown, and no accuracy) and return their scores.

        ``generate(labels, first)`` returns the images number ``first``, ``first + 1``, ..., as floats in about [-1, 1]
        or as uint8. Raises UserError for n < 2. If pixels are not finite or a rank fails, all ranks raise.
        """
        if n < 2:
            raise UserError(f"n={n}: a distance needs at least two images")
        labels = balanced_labels(n, classes or 1)
        counts = {"right": 0}

        def images(first: int, end: int) -> Tensor:
            made = generate(labels[first:end], first).detach()
            if made.dtype != torch.uint8:
                check_finite(made, f"generated images {first} to {end - 1}")
            levels = made if made.dtype == torch.uint8 else to_uint8(made)
            if save is not None:
                save(levels.cpu(), labels[first:end], first)
            if self.classify is not None and classes is not None:
                counts["right"] += self._right(levels, labels[first:end])
            return made

        _ = self.real_features
        stored_rows = torch.arange(self._sliced_size(n)) if self.sliced else None
        measured = self.encode.measure(images, n, self.batch_size, stored_rows)
        right = total(counts)["right"]
        accuracy = right / n if self.classify is not None and classes is not None else None
        return on_rank_zero(lambda: self._scores(measured, n, classes, accuracy))

    @cached_property
    def real_features(self) -> dict[str, FeatureStatistics] | None:
        """Statistics and features of all validation images by encoder, measured by all ranks; None if not needed."""
        needed = not self._all_given() or self.sliced or self.spread_draws
        if self.held_out is None or not needed:
            return None
        split = self.held_out

        def images(first: int, end: int) -> Tensor:
            return split.batch(range(first, end))[0]

        return self.encode.measure(images, len(split), self.batch_size, "all", "validation images")

    @cached_property
    def real_accuracy(self) -> float | None:
        """Accuracy of the classifier on the validation images."""
        if self.classify is None or self.held_out is None:
            return None
        labels = self.held_out.labels.split(self.batch_size)
        pairs = zip(in_batches(self.held_out, self.batch_size), labels, strict=True)
        return sum(self._right(*pair) for pair in pairs) / len(self.held_out)

    def _right(self, levels: UInt8[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> int:
        return int(hits_of(self.classify, levels, labels).sum())

    def _sliced_size(self, n: int) -> int:
        return min(one.size(n, len(self.held_out)) for one in self.sliced.values())

    def fd_floor(self, name: str, n: int) -> float:
        """Return the distance of validation images: the given one, or that of at most ``n`` random ones of them."""
        if name in self.floors:
            return self.floors[name]
        rows, train = self.real_features[name].features, self.train[name]
        count = min(n, len(rows))
        some = random_rows(rows, count, SEED, "validation")
        return self._once(("fd", name, count), lambda: train.distance(*batch_statistics(some)))

    def sw_floor(self, name: str, size: int) -> float:
        """Return SW_2 of ``size`` random validation images."""
        rows, reference = self.real_features[name].features, self.sliced[name]
        return self._once(("sw", name, size), lambda: reference.distance(rows, size, random=True))

    def spread(self, name: str) -> float | None:
        """Return the spread of the FD ratio of real images (see ``distances.spread``), None if it is not wanted."""
        if not self.spread_draws or self.real_features is None:
            return None
        rows, draws = self.real_features[name].features, self.spread_draws
        return self._once(("spread", name, draws), lambda: spread(self.train[name], rows, draws))

    def _once(self, key: tuple[str, str, int], work: Callable[[], float]) -> float:
        if key not in self._found:
            self._found[key] = work()
        return self._found[key]

    def _scores(
        self, measured: Mapping[str, FeatureStatistics], n: int, classes: int | None, accuracy: float | None
    ) -> BatteryScores:
        size = self._sliced_size(n) if self.sliced else None
        encoders = {name: self._of_encoder(name, one, n, size) for name, one in measured.items()}
        sliced = sum(one.sw is not None for one in encoders.values())
        flags = {
            "few-samples": any(n <= len(real.mu) for real in self.train.values()),
            "other-count": self.held_out is not None and n > len(self.held_out) and not self._all_given(),
            "published-floor": bool(self.floors),
            "unbalanced-labels": classes is not None and n % classes > 0,
            "missing-encoders": 0 < sliced < FULL_SW,
        }
        given = tuple(name for name, is_so in flags.items() if is_so)
        return BatteryScores(encoders, n, self.protocol, size, accuracy, self.real_accuracy, given)

    def _all_given(self) -> bool:
        return set(self.names) <= self.floors.keys()

    def _of_encoder(self, name: str, measured: FeatureStatistics, n: int, size: int | None) -> EncoderScores:
        distance = self.train[name].distance(measured.mu, measured.sigma)
        found = {"fd": distance, "fd_floor": self.fd_floor(name, n)}
        if name in self.sliced:
            found |= {"sw": self.sliced[name].distance(measured.features, size), "sw_floor": self.sw_floor(name, size)}
        return EncoderScores(trained=name in self.trained, spread=self.spread(name), **found)
