"""Frechet distance between sets of uint8 images, in the features of any callable."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.utils.errors import UserError

Pictures = UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"] | ImageDataset  # of uint8 pixels
Embed = Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float [B, features]


class NonFiniteError(UserError):
    """Images have infinite or NaN pixels; converting them to uint8 would hide a divergence."""


class FrechetDistance:
    """Frechet distance of image sets to one reference set, whose moments are computed once.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with means m and unbiased covariances S of the features in float64
    (Heusel et al. 2017, arXiv:1706.08500, eq. 6), computed by torchmetrics. Features are computed ``batch`` images at a
    time, without autocast. A module must be in evaluation mode, and ``embed`` must do any resizing. There is no
    communication: every process that calls it needs all images. Raises UserError for fewer than two images.
    """

    @torch.inference_mode(mode=False)  # the stored tensors must be usable outside Lightning's evaluation
    def __init__(self, embed: Embed, reference: Pictures, batch: int) -> None:
        _require_two(len(reference), "reference")
        first = next(in_batches(reference, 1))
        self._batch = batch
        self._metric = FrechetInceptionDistance(
            _Float64Features(embed, embed(first).shape[1]),
            reset_real_features=False,
            sync_on_compute=False,  # otherwise a single measuring process would wait for the others forever
        ).set_dtype(torch.float64)
        self._update(in_batches(reference, batch), real=True)

    def __call__(self, images: Pictures) -> float:
        """Return the distance of ``images`` to the reference set."""
        return self.of_parts(in_batches(images, self._batch))

    @torch.inference_mode(mode=False)
    def of_parts(self, parts: Iterable[UInt8[Tensor, "b c h w"]]) -> float:
        """Return the distance of images given in parts, which are iterated once."""
        self._metric.reset()  # does not reset the reference
        _require_two(self._update(parts, real=False), "measured")
        return self._metric.compute().item()

    def _update(self, parts: Iterable[Tensor], real: bool) -> int:
        count = 0
        for part in parts:
            with torch.autocast(part.device.type, enabled=False):
                self._metric.update(part, real=real)
            count += len(part)
        return count


class _Float64Features(nn.Module):
    """Features in float64, so that torchmetrics does not round its result to float32.

    The callable is not registered as a submodule, because ``set_dtype`` would convert the caller's weights.
    """

    def __init__(self, embed: Embed, num_features: int):
        super().__init__()
        self.num_features = num_features  # otherwise torchmetrics determines it from a random image
        self._embed = (embed,)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        return self._embed[0](images).double()


def frechet_distance(
    embed: Embed,
    real: Pictures,
    fake: UInt8[Tensor, "m c h2 w2"] | UInt8[np.ndarray, "m c h2 w2"] | ImageDataset,
    batch: int,
) -> float:
    """Return the Frechet distance between two sets of images; see ``FrechetDistance``."""
    return FrechetDistance(embed, real, batch)(fake)


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


def _require_two(count: int, what: str) -> None:
    if count < 2:
        raise UserError(f"Frechet distance: {count} {what} image(s), give at least 2")
