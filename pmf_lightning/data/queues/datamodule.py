"""DataModule of class queues: each step pushes new images into queues and samples labels, positives and negatives."""

import math
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from pmf_lightning.data.datamodule import StepLoader
from pmf_lightning.data.dataset import DataSource, ImageDataset, training_images
from pmf_lightning.data.loader import iterate_batches, tally_of
from pmf_lightning.data.order import GlobalOrder
from pmf_lightning.data.queues.class_queues import ClassQueues
from pmf_lightning.data.queues.queue_sizes import check_room
from pmf_lightning.data.queues.settings import QueueSettings
from pmf_lightning.data.shards.bad_records import BadRecordCounter
from pmf_lightning.utils import rng
from pmf_lightning.utils.rng import BatchRows

SAVED_STATES = 4  # saved queue states of recent steps, because Lightning prefetches beyond the step of a checkpoint
PART = 128  # images read and queued at once: 4,096 of 256 pixels would be 0.8 GB per prefetched batch


class QueueData(LightningDataModule):
    """DataModule of steps of (positives [n,P,...], labels [n], negatives [n,N,...]), n = labels / devices.

    Images are uint8 pixels [C,H,W], or float32 moments of latents [2,C,h,w] for a ``source`` of latents. Every device
    queues the same new images, in an order determined by ``seed``, and uses its own labels. The data of a step depend
    only on (seed, step). A checkpoint has the indices of the queued images, and resuming fetches the images.
    """

    def __init__(self, source: DataSource, seed: int, settings: QueueSettings, num_workers: int) -> None:
        super().__init__()
        settings.check_classes(source.classes, source.name)
        self.source, self.seed, self.settings, self.num_workers = source, seed, settings, num_workers
        self.sizes = settings.sizes(source)
        self.tally: BadRecordCounter | None = None
        self.folder = settings.folder and Path(settings.folder)
        self._queues: ClassQueues | None = None
        self._states: dict[int, dict[str, Any]] = {}  # queue state before each step
        self._resumed: dict[str, Any] | None = None

    def accumulation(self, world_size: int) -> int:
        """Return 1, since the loss has means over all labels of a step; UserError unless labels divide over devices."""
        return self.settings.micro_batches(world_size)

    def check_room(self) -> None:
        """Raise UserError without enough space on this machine for the queues of one device."""
        check_room(self.sizes, self.folder)

    def prepare_data(self) -> None:
        """Open the images once per machine, before the other devices do; UserError if there are none."""
        training_images(self.source)

    def train_dataloader(self) -> StepLoader:
        """Return the stream of this device."""
        trainer, images = self.trainer, training_images(self.source)
        shard = BatchRows(trainer.global_rank, trainer.world_size)
        copies = max(1, trainer.world_size // trainer.num_nodes)
        self.tally = tally_of(images, 1)  # every device reads all images
        self._queues = ClassQueues(self.sizes, self.folder, copies)
        if self._resumed is not None:
            self._queues.load_state_dict(self._resumed, images.batch)
        return StepLoader(
            lambda step: self._stream(images, shard, step), reached=lambda: trainer.global_step, resume=lambda: None
        )

    def _stream(self, images: ImageDataset, shard: BatchRows, first: int) -> Iterator[list[Tensor]]:
        order = GlobalOrder(len(images), self.settings.push_per_step, self.seed, (BatchRows(),), first_step=first)
        parts = iterate_batches(images, _in_parts(order), self.num_workers, self.tally)
        for step in count(first):
            self._states[step] = self._queues.state_dict()
            self._states.pop(step - SAVED_STATES, None)
            newest = []
            for new, labels, indices in islice(parts, math.ceil(self.settings.push_per_step / PART)):
                self._queues.push(new, labels, indices)
                newest.append(labels)
            yield self._step(torch.cat(newest), shard, step)

    def _step(self, newest: Tensor, shard: BatchRows, step: int) -> list[Tensor]:
        settings, queues = self.settings, self._queues
        chosen = rng.permutation(self.seed, "labels", step, count=len(newest))[: settings.labels]
        rows = shard.rows(settings.labels // shard.count)
        labels = newest[chosen][rows]
        positives = queues.positives(labels, rows, settings.positives, self.seed, step)
        negatives = queues.negatives(rows, settings.negatives, self.seed, step)
        return [positives, labels, negatives]

    def teardown(self, stage: str) -> None:
        """Report the number of unreadable records."""
        if self.tally is not None:
            self.tally.report()

    def state_dict(self) -> dict[str, Any]:
        """Return the queue state before the next step."""
        state = self._states.get(self.trainer.global_step)
        return {"queues": self._queues.state_dict() if state is None else state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Store the queue state of a checkpoint; ``train_dataloader`` fills the queues from it."""
        self._resumed = state["queues"]


def _in_parts(order: Iterable[list[int]]) -> Iterator[list[int]]:
    for step in order:
        yield from (step[first : first + PART] for first in range(0, len(step), PART))
