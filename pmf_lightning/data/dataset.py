"""Protocols and base classes of the data package: labelled images by index, and data sources."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset


@runtime_checkable
class ImageDataset(Protocol):
    """Labelled images by index: item i is ``(image, label)``.

    They may be generated, decoded or read on access, so callers must not load all of them at once. An image is uint8
    pixels [C, H, W], or float32 [2, C, h, w]: mean and standard deviation of its raw latents (``DataSource.latents``).
    ``labels`` is int64 [N].
    """

    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images [B, ...], which the caller may modify, and labels [B]; IndexError for invalid indices."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image and its label."""
        ...

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return a list of (image, label), as torch's DataLoader requests it."""
        ...


class BatchDataset(Dataset):
    """Base class of datasets that implement ``batch``; single items and lists are derived from it."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels (see ``ImageDataset``)."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return a list of items; torch's DataLoader calls this instead of ``__getitem__``."""
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))


class ArrayDataset(BatchDataset):
    """Images and labels in two arrays: item i is ``(image, int)``.

    ``images`` is uint8 [N, C, H, W], or float32 [N, 2, C, h, w] moments of latents, as a tensor or a numpy array. The
    array may be a memory map: only the requested rows are read, and they are copied. ``labels`` is int64 [N].
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n *image"] | UInt8[np.ndarray, "n *image"] | Float32[Tensor, "n *image"],
        labels: Int64[Tensor, " n"],
    ) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[Tensor, "b *image"] | Float32[Tensor, "b *image"], Int64[Tensor, " b"]]:
        """Return images [B, ...] and labels [B] by one gather."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            return self.images[rows], self.labels[rows]
        return torch.from_numpy(self.images[rows.numpy()]), self.labels[rows]


class Head(BatchDataset):
    """The first ``count`` of ``images``, or all if there are fewer."""

    def __init__(self, images: ImageDataset, count: int) -> None:
        self.images, self.labels = images, images.labels[:count]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels (see ``ImageDataset``)."""
        if len(indices) and max(indices) >= len(self):
            raise IndexError(f"image {max(indices)} of {len(self)}")
        return self.images.batch(indices)


@runtime_checkable
class DataSource(Protocol):
    """A named set of labelled square images with a fixed split, built from ``conf/data``.

    A source with a true class attribute ``latents`` provides latents, ``channels`` x ``resolution`` x ``resolution``,
    instead of pixels.
    """

    name: str
    resolution: int
    channels: int
    classes: int

    def check(self) -> None:
        """Raise UserError for invalid settings, without expensive work."""

    def train(self) -> ImageDataset:
        """Return the training split."""

    def held_out(self) -> ImageDataset:
        """Return the split that is not used in training."""

    def fingerprint(self) -> str:
        """Return a hex digest, for cache keys, that changes whenever an image or the split may have changed."""
