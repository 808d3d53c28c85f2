"""Ring buffers of images, in memory or in a file; a new image replaces the oldest of its ring."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from pmf_lightning.utils.cache import writable
from pmf_lightning.utils.errors import UserError

CHUNK = 256  # images fetched at once on resume


class RingBuffers:
    """``count`` ring buffers of ``capacity`` images of ``shape`` each, with the dataset index of every image.

    ``images`` is [count, capacity, *shape] of ``dtype``, ``indices`` int64 [count, capacity] (-1: empty). ``filled``
    [count] is the number of occupied slots, which are the first ones. ``next`` [count] is the slot of the next image.
    """

    def __init__(self, count: int, capacity: int, shape: tuple[int, ...], folder: Path | None, dtype: str) -> None:
        self.capacity = capacity
        self.images = _zeros((count, capacity, *shape), folder, dtype)
        self.indices = np.full((count, capacity), -1, dtype=np.int64)
        self.filled = np.zeros(count, dtype=np.int64)
        self.next = np.zeros(count, dtype=np.int64)

    def push(self, ring: int, image: Shaped[np.ndarray, "*shape"], index: int) -> None:
        """Write one image into a ring."""
        slot = self.next[ring]
        self.images[ring, slot] = image
        self.indices[ring, slot] = index
        self.next[ring] = (slot + 1) % self.capacity
        self.filled[ring] = min(self.filled[ring] + 1, self.capacity)

    def state_dict(self) -> dict[str, Int64[Tensor, "..."]]:
        """Return everything but the images."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in ("indices", "next")}

    def load_state_dict(self, state: dict[str, Int64[Tensor, "..."]], name: str) -> None:
        """Restore indices and positions, without images; UserError, naming the rings ``name``, for other sizes."""
        if tuple(state["indices"].shape) != self.indices.shape:
            raise UserError(
                f"{name}: the checkpoint has {' x '.join(map(str, state['indices'].shape))} slots, this run "
                f"{' x '.join(map(str, self.indices.shape))}: set the sizes of the run that wrote it"
            )
        self.indices[:] = state["indices"].numpy()
        self.next[:] = state["next"].numpy()
        self.filled[:] = (self.indices >= 0).sum(1)

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
        """Yield rings, slots and indices of all occupied slots, in chunks."""
        which, slots = np.nonzero(self.indices >= 0)
        for start in range(0, len(which), CHUNK):
            part = which[start : start + CHUNK], slots[start : start + CHUNK]
            yield *part, self.indices[part].tolist()


def _zeros(shape: tuple[int, ...], folder: Path | None, dtype: str = "uint8") -> Shaped[np.ndarray, "..."]:
    """Return zeros, in memory or in a memory-mapped unnamed temporary file, which is deleted after its last use."""
    if folder is None:
        return np.zeros(shape, dtype)
    folder = writable(folder.expanduser(), "folder of the queues")
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):  # allocate now, because a full disk would later kill the process
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, mode="r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
        except OSError as error:
            raise UserError(f"queues under {folder}: {error.strerror}; choose a folder on a larger disk") from error
