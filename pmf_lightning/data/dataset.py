"""What the data room offers the others: labelled images by index, and the sources they come from."""

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

    They may be made, decoded or read when they are asked for, so nobody asks for all of them at once. An image is uint8
    pixels [C, H, W], or float32 [2, C, h, w]: mean and standard deviation of its raw latents (``DataSource.latents``).
    ``labels`` is int64 [N].
    """

    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fetch several: images [B, ...], which are the caller's own, and labels [B]; IndexError beyond the last."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Fetch one."""
        ...

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Fetch several, one by one in a list: what torch's DataLoader asks for."""
        ...


class BatchDataset(Dataset):
    """Images whose ``batch`` is the one way to them; single items and lists of them come from there."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fetch several (see ``ImageDataset``)."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Fetch several items; torch's DataLoader calls this instead of asking one by one."""
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))


class ArrayDataset(BatchDataset):
    """Images and labels in two arrays: item i is ``(image, int)``.

    ``images`` is uint8 [N, C, H, W], or float32 [N, 2, C, h, w] moments of latents, as a tensor or a numpy array, which
    may be a memory map: only the rows that are asked for are read, and they are copied. ``labels`` is int64 [N].
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
        """Fetch several items in one gather: images [B, ...] and labels [B]."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            return self.images[rows], self.labels[rows]
        return torch.from_numpy(self.images[rows.numpy()]), self.labels[rows]


class Head(BatchDataset):
    """The first ``count`` of ``images``, or all of them where they are fewer."""

    def __init__(self, images: ImageDataset, count: int) -> None:
        self.images, self.labels = images, images.labels[:count]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fetch several."""
        if len(indices) and max(indices) >= len(self):
            raise IndexError(f"image {max(indices)} of {len(self)}")
        return self.images.batch(indices)


@runtime_checkable
class DataSource(Protocol):
    """A named set of labelled square images with a fixed split, built from ``conf/data``.

    One with a class attribute ``latents`` that is true hands out latents, ``channels`` x ``resolution`` x
    ``resolution``, instead of pixels.
    """

    name: str
    resolution: int
    channels: int
    classes: int

    def check(self) -> None:
        """Raise UserError for a setting that cannot work, without heavy work."""

    def train(self) -> ImageDataset:
        """Return the training split."""

    def held_out(self) -> ImageDataset:
        """Return the split that training never sees."""

    def fingerprint(self) -> str:
        """Return hex digits that change whenever an image or the split may have changed: a key for caches."""
