"""LightningDataModules of images and of labels alone: endless streams per device that can start at any step."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import count

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from pmf_lightning.data.dataset import DataSource, ImageDataset, training_images
from pmf_lightning.data.division import micro_batches
from pmf_lightning.data.loader import iterate_batches, tally_of
from pmf_lightning.data.order import GlobalOrder, step_shards
from pmf_lightning.data.shards.bad_records import BadRecordCounter
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.rng import BatchRows


class StepLoader:
    """An endless iterable of ``(images [B, ...], int64 [B])`` that starts at the current training step.

    It is not a DataLoader, because Lightning would inject its own distributed sampler. Each iteration opens a new
    stream at its first batch; batches that workers prefetched without use are fetched again.
    """

    def __init__(
        self, open_at: Callable[[int], Iterator[list[Tensor]]], reached: Callable[[], int], resume: Callable[[], None]
    ) -> None:
        self._open_at = open_at
        self._reached = reached
        self._resume = resume

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from self._open_at(self._reached())

    def state_dict(self) -> dict:
        """Return an empty state, since the optimiser step is enough. The method marks the loader as resumable."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Call the resume callback. Lightning calls this before the first batch after loading a checkpoint."""
        self._resume()


class StepData(LightningDataModule):
    """Base class of datamodules whose global batch of a step is split over devices and micro-batches.

    ``batch`` is the number of rows per optimiser step over all devices and micro-batches. ``micro_batch`` is the number
    of rows per forward pass of a device (None: its full share). A subclass implements ``stream``.
    """

    def __init__(self, seed: int, batch: int, micro_batch: int | None) -> None:
        super().__init__()
        for name, value in (("batch", batch), ("micro_batch", micro_batch)):
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: set it to 1 or more")
        self.seed = seed
        self.batch = batch
        self.micro_batch = micro_batch

    def accumulation(self, world_size: int) -> int:
        """Return the micro-batches per device and step for ``world_size`` devices; UserError if sizes do not divide."""
        return micro_batches(self.batch, self.micro_batch, world_size)

    def check_room(self) -> None:
        """Raise UserError without enough space on this machine for the data."""

    def train_dataloader(self) -> StepLoader:
        """Return the stream of this device; UserError if accumulate_grad_batches of the trainer does not match."""
        trainer = self.trainer
        micro_batches = self.accumulation(trainer.world_size)
        if trainer.accumulate_grad_batches != micro_batches:
            raise UserError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} does not match batch={self.batch}, "
                f"devices={trainer.world_size}, micro_batch={self.micro_batch}: set it to {micro_batches}"
            )
        shards = step_shards(trainer.global_rank, trainer.world_size, micro_batches)

        def resume() -> None:
            _drop_partial_step(trainer)

        return StepLoader(lambda step: self.stream(shards, step), reached=lambda: trainer.global_step, resume=resume)

    def stream(self, shards: tuple[BatchRows, ...], first_step: int) -> Iterator[list[Tensor]]:
        """Yield the micro-batches of ``shards`` endlessly, from a step on."""
        raise NotImplementedError


class ImageData(StepData):
    """DataModule of the images of ``source``, in an order determined by ``seed``.

    ``num_workers`` is the number of worker processes per device. The images of a step do not depend on the number of
    devices, ``micro_batch`` or ``num_workers``. ``tally`` counts the shard records that this device could not read; it
    is None for other sources.
    """

    def __init__(self, source: DataSource, seed: int, batch: int, micro_batch: int | None, num_workers: int) -> None:
        super().__init__(seed, batch, micro_batch)
        if num_workers < 0:
            raise UserError(f"num_workers={num_workers}: set it to 0 or more")
        self.source = source
        self.num_workers = num_workers
        self.tally: BadRecordCounter | None = None

    @cached_property
    def train_set(self) -> ImageDataset:
        """The training split, opened at first use; UserError if it is empty."""
        return training_images(self.source)

    def prepare_data(self) -> None:
        """Open the images once per machine before the other devices do, since the first use may decode them."""
        _ = self.train_set

    def train_dataloader(self) -> StepLoader:
        """Return the stream of this device; UserError if accumulate_grad_batches of the trainer does not match."""
        loader = super().train_dataloader()
        self.tally = tally_of(self.train_set, self.trainer.world_size)
        return loader

    def stream(self, shards: tuple[BatchRows, ...], first_step: int) -> Iterator[list[Tensor]]:
        """Yield images and labels endlessly from a step on; raises UserError if too many records are bad."""
        order = GlobalOrder(len(self.train_set), self.batch, self.seed, shards, first_step=first_step)
        for images, labels, _ in iterate_batches(self.train_set, order, self.num_workers, self.tally):
            yield [images, labels]

    def teardown(self, stage: str) -> None:
        """Report the number of unreadable records."""
        if self.tally is not None:
            self.tally.report()


class LabelData(StepData):
    """DataModule of labels without images, for objectives that need no images.

    The labels of a step are sampled independently with ``weights`` (None: all classes alike). The label of a row
    depends only on (seed, step, global row).
    """

    def __init__(
        self, classes: int, seed: int, batch: int, micro_batch: int | None, weights: Sequence[Number] | None = None
    ) -> None:
        super().__init__(seed, batch, micro_batch)
        weights = [1.0] * classes if weights is None else list(weights)
        if len(weights) != classes or min(weights) < 0 or not sum(weights) > 0:
            raise UserError(
                f"class_weights of the objective: {len(weights)} numbers for {classes} classes; give one for each "
                "class, 0 or more, and not all 0"
            )
        self.edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)

    def stream(self, shards: tuple[BatchRows, ...], first_step: int) -> Iterator[list[Tensor]]:
        """Yield labels endlessly from a step on."""
        rows = [shard.rows(self.batch // shard.count) for shard in shards]
        for step in count(first_step):
            places = rng.uniform(self.seed, "labels", step, count=self.batch) * self.edges[-1]
            labels = torch.searchsorted(self.edges, places, right=True).clamp_max(len(self.edges) - 1)
            for part in rows:
                yield [labels[part]]


def _drop_partial_step(trainer: Trainer) -> None:
    """Discard the progress of a partial step from a checkpoint; its gradients are lost, so the step starts again.

    Lightning triggers the optimiser step by its own count of micro-batches, so it would step early, with too few.
    """
    counted = trainer.fit_loop.epoch_loop.batch_progress.current
    partial = counted.processed % trainer.accumulate_grad_batches
    counted.increment_by(-partial)
