"""Queues of real images for drifting models: the newest of every class, and the newest of any class.

A step of training compares generated samples of a class with real ones of that class (positives), and with real ones
of any class (negatives). One batch holds too few of a class, so the newest images are kept: a ring per class and one
ring for all. Beside every image lies its index in the data set; a checkpoint holds those indices alone, and on resume
the same images are fetched again.
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
        sizes: how many of what.
        folder: where a file that holds the images is made, its space taken at once; the file has no name, so it ends
            with the process and is no other's. None: memory.
        copies: processes of this machine that make queues of their own, for the question whether there is room.

    Prints its size before it allocates. Raises UserError where there is no room.
    """

    def __init__(self, sizes: QueueSizes, folder: Path | None = None, copies: int = 1) -> None:
        print(sizes.report(folder, copies), flush=True)
        check_room(sizes, folder, copies)
        self.sizes = sizes
        self.by_class = RingBuffers(sizes.classes, sizes.per_class, sizes.shape, folder, sizes.dtype)
        self.any_class = RingBuffers(1, sizes.overall, sizes.shape, folder, sizes.dtype)

    def push(self, images: Images, labels: Labels, indices: Sequence[int]) -> None:
        """Add images with their labels and their ``indices`` in the data set, in order; the oldest make room.

        All processes should push the same images (the whole batch of a step), so that their queues are equal.
        ValueError for labels out of range, images of another shape or kind or lengths that differ.
        """
        if not len(images) == len(labels) == len(indices):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(indices)} indices: one of each per row")
        if tuple(images.shape[1:]) != tuple(self.sizes.shape):
            raise ValueError(f"images of shape {tuple(images.shape[1:])} in queues of {tuple(self.sizes.shape)}")
        if images.dtype != getattr(torch, self.sizes.dtype):
            raise ValueError(f"images of {images.dtype} in queues of {self.sizes.dtype}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.sizes.classes:
            raise ValueError(f"labels {labels.min()} to {labels.max()}: the queues know 0 to {self.sizes.classes - 1}")
        for image, label, index in zip(images.cpu().numpy(), labels.tolist(), indices, strict=True):
            self.by_class.push(label, image, index)
            self.any_class.push(0, image, index)

    def positives(
        self, labels: Labels, rows: Labels, count: int, seed: int, step: int
    ) -> Shaped[Tensor, "n count *image"]:
        """Draw ``count`` images of each of ``labels``; ``rows`` are the places of the labels in the global batch.

        Without replacement where the class has that many, with replacement else. What a row gets depends on
        (seed, step, row) and on its class's queue alone. UserError for classes that have no image.
        """
        empty = sorted({label for label in labels.tolist() if not self.by_class.filled[label]})
        if empty:
            raise UserError(
                f"no image of class {', '.join(map(str, empty[:10]))}{' ...' if len(empty) > 10 else ''} has been "
                "queued: push some first, take the labels of a step from the newest batch, or choose other data"
            )
        return self._draw(self.by_class, "positives", labels, rows, count, seed, step)

    def negatives(self, rows: Labels, count: int, seed: int, step: int) -> Shaped[Tensor, "n count *image"]:
        """Draw ``count`` images of any class for each of the ``rows`` of the global batch; as ``positives``."""
        if not self.any_class.filled[0]:
            raise UserError("no image has been queued at all: push some before the first step")
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
        """Return which images lie where, as indices of the data set: 1 MB for 1000 classes x 128."""
        return {"by_class": self.by_class.state_dict(), "any_class": self.any_class.state_dict()}

    def load_state_dict(self, state: dict[str, Any], fetch: Fetch) -> None:
        """Put back the images that ``state`` names; ``fetch(indices)`` returns them, [n,...], with labels [n].

        The ``batch`` of any images (data/dataset.py) is such a function. UserError where the queues have other sizes,
        or where the data set has no such image or gives an image another class than it had.
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
    """Choose ``count`` of the first ``filled`` slots, for each row: without replacement where there are as many.

    The order of the first ``filled`` numbers of a row is a random order of its slots, of which the first are taken;
    where there are too few, the first ``count`` numbers choose a slot each. ``filled`` is 1 or more.
    """
    places = torch.arange(uniform.shape[1])
    without = uniform.masked_fill(places >= filled[:, None], 2.0).argsort(dim=1, stable=True)[:, :count]
    again = (uniform[:, :count] * filled[:, None]).long()
    return torch.where(filled[:, None] >= count, without, again)
