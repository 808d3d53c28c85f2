"""Frechet distance between sets of uint8 images, in the features of any callable."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.encoders.base import Features
from pmf_lightning.evaluation.moments import FeatureStatistics, Gaussian, Moments
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

Pictures = UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"] | ImageDataset  # of uint8 pixels
Embed = Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float [B, features]
# (what the images are, measurement of them) -> their moments, stored by an earlier run or measured now
Stored = Callable[[str, Callable[[], FeatureStatistics]], FeatureStatistics]
LATE_BAR = {"delay": 2, "leave": False, "disable": None}  # a bar on a terminal, for work that takes over two seconds


class NonFiniteError(UserError):
    """Images have infinite or NaN pixels; converting them to uint8 would hide a divergence."""


class FrechetDistance:
    """Frechet distance of image sets to one reference set, whose moments are computed once.

    See ``Gaussian.distance`` for the formula; means and unbiased covariances of the features are in float64. Features
    are computed ``batch`` images at a time, without autocast. A module must be in evaluation mode, and ``embed`` must
    do any resizing. There is no communication: every process that calls it needs all images. ``name`` is that of the
    distance in progress bars, which appear after two seconds. ``stored`` may keep the moments of real images, of the
    "reference" and of sets given to ``of_real``. Raises UserError for fewer than two images.
    """

    def __init__(
        self, embed: Embed, reference: Pictures, batch: int, name: str = "fd", stored: Stored | None = None
    ) -> None:
        self._embed, self._batch, self._name = embed, batch, name
        self._stored = stored or (lambda what, measure: measure())
        moments = self._real(reference, "reference")
        self._reference = Gaussian(moments.mu, moments.sigma)

    def __call__(self, images: Pictures) -> float:
        """Return the distance of ``images`` to the reference set."""
        return self.of_sums(self._summed(images))

    def of_real(self, images: Pictures, what: str) -> float:
        """Return the distance of real ``images``, whose moments are stored as those of ``what``."""
        moments = self._real(images, what)
        return self._reference.distance(moments.mu, moments.sigma)

    def new_sums(self) -> "FeatureSums":
        """Return empty sums, for images that are shared by several distances."""
        return FeatureSums(self._embed)

    def of_sums(self, sums: "FeatureSums") -> float:
        """Return the distance of the images that were added to ``sums``."""
        statistics = sums.statistics("measured")
        return self._reference.distance(statistics.mu, statistics.sigma)

    def _real(self, images: Pictures, what: str) -> FeatureStatistics:
        return self._stored(what, lambda: self._summed(images).statistics(what))

    def _summed(self, images: Pictures) -> "FeatureSums":
        sums = self.new_sums()
        parts = in_batches(images, self._batch)
        with tqdm(total=len(images), desc=f"features for {self._name}", unit="image", **LATE_BAR) as bar:
            for part in parts:
                sums.add(part)
                bar.update(len(part))
        return sums


class FeatureSums:
    """Sums of the features of uint8 images [B, C, H, W] that come in parts."""

    def __init__(self, embed: Embed) -> None:
        self._embed, self._count = embed, 0
        self._moments: Moments | None = None

    @torch.inference_mode(mode=False)  # Lightning may call it in inference mode, whose tensors cannot be updated later
    @torch.no_grad()
    def add(self, part: UInt8[Tensor, "b c h w"]) -> None:
        """Add images."""
        with torch.autocast(part.device.type, enabled=False):
            features = self._embed(part)
        if self._moments is None:
            self._moments = Moments(features.shape[1], logits=0, stored_rows=None, sync=False).to(features.device)
        self._moments.update(Features(features, None), self._count)
        self._count += len(part)

    def statistics(self, what: str) -> FeatureStatistics:
        """Return mean and covariance; UserError, which calls the images ``what``, for fewer than two."""
        if self._moments is None or self._count < 2:
            raise UserError(f"Frechet distance: {counted(self._count, f'{what} image')}, give at least 2")
        return self._moments.compute()


def in_batches(images: Tensor | np.ndarray | ImageDataset, batch: int) -> Iterator[Tensor]:
    """Yield ``images`` in order as tensors of at most ``batch`` rows; numpy arrays are copied."""
    for start in range(0, len(images), batch):
        end = min(start + batch, len(images))
        if isinstance(images, Tensor):
            yield images[start:end]
        elif isinstance(images, np.ndarray):
            yield torch.from_numpy(np.array(images[start:end]))
        else:
            yield images.batch(range(start, end))[0]


def check_finite(images: Float[Tensor, "*shape"], what: str) -> None:
    """Raise NonFiniteError, with their number, if pixels of ``what`` are infinite or NaN."""
    bad = images.numel() - int(images.isfinite().sum())
    if bad:
        raise NonFiniteError(
            f"{what}: {bad} of {images.numel()} pixels are not finite: training has diverged, lower the learning rate"
        )
