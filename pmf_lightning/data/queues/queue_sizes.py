"""Sizes of the image queues, reported and checked against free space before allocation."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.free_space import free_disk, free_memory

SPARE = 0.02  # fraction of the free space that is not used


@dataclass(frozen=True)
class QueueSizes:
    """Queue sizes: ``per_class`` images for each of ``classes``, and ``global_size`` of any class.

    Images have ``shape`` and ``dtype``: uint8 pixels (C, H, W), or float32 moments of latents (2, C, h, w).
    """

    classes: int
    per_class: int
    global_size: int
    shape: tuple[int, ...]
    dtype: str = "uint8"

    def __post_init__(self):
        for name in ("classes", "per_class", "global_size"):
            if getattr(self, name) < 1:
                raise UserError(f"queues: {name}={getattr(self, name)}: set it to 1 or more")

    @property
    def images(self) -> int:
        """Total capacity of all queues, in images."""
        return self.classes * self.per_class + self.global_size

    @property
    def bytes(self) -> int:
        """Allocated size in bytes, that of full queues; the official pixel setting takes 25.4 GB."""
        return self.images * math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def report(self, folder: Path | None = None, copies: int = 1) -> str:
        """Return one line with the size and place of the allocation."""
        size = "x".join(map(str, self.shape))
        total = f"{copies} processes x {gigabytes(self.bytes)}" if copies > 1 else gigabytes(self.bytes)
        place = "in memory" if folder is None else f"in a file under {folder}"
        return (
            f"queues of real images: {self.classes} classes x {self.per_class} + {self.global_size} of any class, "
            f"{size} {self.dtype}: {total} {place}"
        )


def gigabytes(count: int) -> str:
    """Format a number of bytes in MB or GB (powers of ten)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def check_room(sizes: QueueSizes, folder: Path | None = None, copies: int = 1) -> None:
    """Raise UserError without enough space on this machine for the queues of ``copies`` processes."""
    needed, free = copies * sizes.bytes, free_memory() if folder is None else free_disk(folder)
    if needed <= (1 - SPARE) * free:
        return
    where, other = (
        ("memory", "put them on disk (a folder with enough space)")
        if folder is None
        else (
            f"the disk of {folder}",
            "choose a folder on a larger disk",
        )
    )
    raise UserError(
        f"{sizes.report(folder, copies)}: {where} has {gigabytes(free)} free; {other}, or lower per_class="
        f"{sizes.per_class} or global_size={sizes.global_size} (an image takes "
        f"{gigabytes(sizes.bytes // sizes.images)})"
    )
