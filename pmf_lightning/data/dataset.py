"""What the data room offers the others: labelled whole-level images by index, and the sources they come from."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset


class ArrayDataset(Dataset):
    """Images and labels in two arrays: item i is ``(uint8 [C, H, W], int)``.

    ``images`` is uint8 [N, C, H, W], a tensor or a numpy array, which may be a memory map: only the rows that are asked
    for are read, and they are copied. ``labels`` is int64 [N].
    """

    def __init__(
        self, images: UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"], labels: Int64[Tensor, " n"]
    ) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """Fetch several items in one gather: images [B, C, H, W] and labels [B]."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            return self.images[rows], self.labels[rows]
        return torch.from_numpy(self.images[rows.numpy()]), self.labels[rows]

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "c h w"], int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[UInt8[Tensor, "c h w"], int]]:
        """Fetch several items; torch's DataLoader calls this instead of asking one by one."""
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))


@runtime_checkable
class Source(Protocol):
    """A named set of labelled square images with a fixed split, built from ``conf/data``."""

    name: str
    resolution: int
    channels: int
    classes: int

    def check(self) -> None:
        """Raise UserError for a setting that cannot work, without heavy work."""

    def train(self) -> ArrayDataset:
        """Return the training split."""

    def held_out(self) -> ArrayDataset:
        """Return the split that training never sees."""

    def fingerprint(self) -> str:
        """Return hex digits that change whenever an image or the split may have changed: a key for caches."""
