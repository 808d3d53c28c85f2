"""Order of training images: a pure function of the seed and the step, independent of the number of devices.

Global sample g, counted from the start of the run, is image ``permutation(seed, "order", epoch)[g % images]`` with
``epoch = g // images``. Each epoch contains every image once, and a batch may span two epochs. A batch is divided into
micro-batches by ``rng.BatchRows``, like the random numbers of training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch
from jaxtyping import Int64
from torch import Tensor

from pmf_lightning.utils.rng import BatchRows, permutation


def step_shards(rank: int, world_size: int, micro_batches: int) -> tuple[BatchRows, ...]:
    """Return the shards of the global batch of a rank in one optimiser step, in order."""
    return tuple(BatchRows(j * world_size + rank, micro_batches * world_size) for j in range(micro_batches))


def micro_batch_indices(images: int, batch: int, seed: int, step: int, shard: BatchRows) -> list[int]:
    """Return the image indices of one micro-batch, the part ``shard`` of the global batch of optimiser step ``step``.

    ``batch`` is global; ValueError unless the number of shards divides it.
    """
    if batch % shard.count:
        raise ValueError(f"a batch of {batch} does not divide into {shard.count} micro-batches")
    samples = step * batch + shard.rows(batch // shard.count)
    epochs = samples // images
    indices = torch.empty_like(samples)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        indices[here] = _epoch_order(seed, epoch, images)[samples[here] % images]
    return indices.tolist()


@lru_cache(maxsize=4)  # a batch rarely spans more than two epochs; a permutation of ImageNet takes tens of milliseconds
def _epoch_order(seed: int, epoch: int, images: int) -> Int64[Tensor, " images"]:
    return permutation(seed, "order", epoch, count=images)


@dataclass(frozen=True)
class GlobalOrder:
    """An endless batch sampler over the micro-batches ``shards`` of each step, from ``first_step`` on."""

    images: int
    batch: int
    seed: int
    shards: tuple[BatchRows, ...]
    first_step: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.first_step):
            for shard in self.shards:
                yield micro_batch_indices(self.images, self.batch, self.seed, step, shard)
