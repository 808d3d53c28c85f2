"""Queues of real images for drifting models: the newest images of every class, and of any class.

A training step compares generated samples of a class with real images of that class (positives) and of any class
(negatives). One batch has too few images of a class, so the newest images are stored: a ring buffer per class and one
for all classes. The dataset index of every image is stored too. A checkpoint has only these indices, and on resume the
images are fetched again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from pmf_lightning.data.queues.queue_sizes import QueueSizes, check_room
from pmf_lightning.data.queues.ring_buffer import RingBuffers
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

Images = Shaped[Tensor, "n *image"]
Labels = Int64[Tensor, " n"]
Fetch = Callable[[Sequence[int]], tuple[Tensor, Tensor]]


class ClassQueues:
    """The newest images of every class and of any class.

    Args:
        sizes: capacities and image shape.
        folder: folder of an unnamed temporary file for the images, allocated at once. It is private to the process and
            is deleted with it. None: memory.
        copies: processes on this machine with their own queues, for the check of free space.

    Prints the size before allocation. Raises UserError without enough space.
    """

    def __init__(self, sizes: QueueSizes, folder: Path | None = None, copies: int = 1) -> None:
        print(sizes.report(folder, copies), flush=True)
        check_room(sizes, folder, copies)
        self.sizes = sizes
        self.by_class = RingBuffers(sizes.classes, sizes.per_class, sizes.shape, folder, sizes.dtype)
        self.any_class = RingBuffers(1, sizes.global_size, sizes.shape, folder, sizes.dtype)

    def push(self, images: Images, labels: Labels, indices: Sequence[int]) -> None:
        """Add images with their labels and dataset ``indices``, in order, replacing the oldest.

        All processes should push the same images (the global batch of a step), so that their queues are equal.
        ValueError for labels out of range, images of another shape or dtype, or lengths that differ.
        """
        if not len(images) == len(labels) == len(indices):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(indices)} indices: one of each per row")
        if tuple(images.shape[1:]) != tuple(self.sizes.shape):
            raise ValueError(f"images of shape {tuple(images.shape[1:])} in queues of {tuple(self.sizes.shape)}")
        if images.dtype != getattr(torch, self.sizes.dtype):
            raise ValueError(f"images of {images.dtype} in queues of {self.sizes.dtype}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.sizes.classes:
            raise ValueError(f"labels {labels.min()} to {labels.max()}: the queues have 0 to {self.sizes.classes - 1}")
        for image, label, index in zip(images.cpu().numpy(), labels.tolist(), indices, strict=True):
            self.by_class.push(label, image, index)
            self.any_class.push(0, image, index)

    def positives(
        self, labels: Labels, rows: Labels, count: int, seed: int, step: int
    ) -> Shaped[Tensor, "n count *image"]:
        """Sample ``count`` images per label; ``rows`` are the indices of the labels in the global batch.

        Sampling is without replacement if the class has ``count`` images, else with replacement. The result of a row
        depends only on (seed, step, row) and the queue of its class. UserError for classes without images.
        """
        empty = sorted({label for label in labels.tolist() if not self.by_class.filled[label]})
        if empty:
            raise UserError(
                f"no image of class {', '.join(map(str, empty[:10]))}{' ...' if len(empty) > 10 else ''} has been "
                "queued: push some first, take the labels of a step from the newest batch, or choose other data"
            )
        return self._draw(self.by_class, "positives", labels, rows, count, seed, step)

    def negatives(self, rows: Labels, count: int, seed: int, step: int) -> Shaped[Tensor, "n count *image"]:
        """Sample ``count`` images of any class for each of the ``rows`` of the global batch, as in ``positives``."""
        if not self.any_class.filled[0]:
            raise UserError("no image has been queued: push some before the first step")
        return self._draw(self.any_class, "negatives", torch.zeros_like(rows), rows, count, seed, step)

    @staticmethod
    def _draw(
        rings: RingBuffers, name: str, which: Labels, rows: Labels, count: int, seed: int, step: int
    ) -> Shaped[Tensor, "n count *image"]:
        width = max(rings.capacity, count)
        uniform = [rng.uniform(seed, name, step, row, count=width) for row in rows.tolist()]
        filled = torch.from_numpy(rings.filled)[which]
        slots = choose(torch.stack(uniform), filled, count) if uniform else which.new_empty(0, count)
        return torch.from_numpy(rings.images[which.numpy()[:, None], slots.numpy()])

    def state_dict(self) -> dict[str, Any]:
        """Return the contents of the queues as dataset indices: 1 MB for 1000 classes x 128."""
        return {"by_class": self.by_class.state_dict(), "any_class": self.any_class.state_dict()}

    def load_state_dict(self, state: dict[str, Any], fetch: Fetch) -> None:
        """Restore the images listed in ``state``; ``fetch(indices)`` returns them, [n,...], with labels [n].

        The method ``batch`` of any dataset (data/dataset.py) can be passed. UserError if the queues have other sizes,
        if the dataset lacks an image, or if the class of an image has changed.
        """
        self.by_class.load_state_dict(state["by_class"], "queues of a class")
        self.any_class.load_state_dict(state["any_class"], "the queue of any class")
        total = int(self.by_class.filled.sum() + self.any_class.filled.sum())
        with tqdm(total=total, desc="refilling queues", unit="image", disable=total < 2048) as bar:
            for rings, classed in ((self.by_class, True), (self.any_class, False)):
                for which, slots, indices in rings.chunks():
                    images, labels = self._fetched(fetch, indices)
                    wrong = np.flatnonzero(labels.numpy() != which) if classed else []
                    if len(wrong):
                        raise UserError(
                            f"the queues of the checkpoint hold image {indices[wrong[0]]} as class {which[wrong[0]]}, "
                            f"this data set as class {labels[wrong[0]]}: resume with the data of the run"
                        )
                    rings.images[which, slots] = images.numpy()
                    bar.update(len(indices))

    def _fetched(self, fetch: Fetch, indices: list[int]) -> tuple[Tensor, Tensor]:
        try:
            images, labels = fetch(indices)
        except IndexError as error:
            raise UserError(
                f"the queues of the checkpoint hold images up to {max(indices)}, which this data set does not have: "
                "resume with the data of the run"
            ) from error
        if tuple(images.shape[1:]) != tuple(self.sizes.shape):
            raise UserError(
                f"the queues hold images of {tuple(self.sizes.shape)}, this data set {tuple(images.shape[1:])}: "
                "resume with the data of the run"
            )
        return images, labels


def choose(uniform: Float64[Tensor, "n k"], filled: Labels, count: int) -> Int64[Tensor, "n count"]:
    """Choose ``count`` of the first ``filled`` slots per row, without replacement if there are enough.

    Without replacement, the slots are the first ``count`` of the argsort of the row's first ``filled`` numbers. With
    replacement, each of the first ``count`` numbers selects one slot. ``filled`` is 1 or more.
    """
    places = torch.arange(uniform.shape[1])
    without = uniform.masked_fill(places >= filled[:, None], 2.0).argsort(dim=1, stable=True)[:, :count]
    again = (uniform[:, :count] * filled[:, None]).long()
    return torch.where(filled[:, None] >= count, without, again)
