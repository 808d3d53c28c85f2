"""Load batches in a given order, collated in the process that reads them: the main process or a worker."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pmf_lightning.data.dataset import ImageDataset
from pmf_lightning.data.shards.bad_records import BadRecord, BadRecordCounter
from pmf_lightning.data.shards.images import ShardImages
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import generator
from pmf_lightning.utils.signals import SIGNALS


class BatchFetcher(Dataset):
    """Dataset that returns complete batches of ``images``: images [B, ...], labels [B], bad records, indices.

    Use it in a DataLoader with ``collate_fn=identity_collate``. A UserError is returned in place of the bad records and
    raised in the main process, because one raised in a worker would arrive wrapped in a traceback.
    """

    def __init__(self, images: ImageDataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[BadRecord] | UserError, Sequence[int]]:
        if not isinstance(self.images, ShardImages):
            return *self.images.batch(indices), [], indices
        try:
            return *self.images.fetch(indices), indices
        except UserError as error:
            return torch.empty(0), torch.empty(0), error, indices


def identity_collate(batch: Any) -> Any:
    """Return the batch unchanged; a ``collate_fn`` for datasets that return complete batches."""
    return batch


def ignore_stop_signals(worker: int) -> None:
    """worker_init_fn: ignore stop signals, so that only the parent process can end a worker.

    A terminal, ``timeout`` and SLURM signal all processes of a run, but the run still has to finish its step.
    """
    unblocked = set(SIGNALS) - {signal.SIGTERM}
    for number in unblocked:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    else:
        unblocked = SIGNALS  # macOS has no sigwaitinfo, so SIGTERM ends the worker at once
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, unblocked)


@contextmanager
def _block_signals() -> Iterator[None]:
    """Block signals; processes started inside inherit the mask until they call ``ignore_stop_signals``."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent() -> None:
    run = parent_process().pid  # not getppid, which may be a fork server
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)


def tally_of(images: ImageDataset, processes: int) -> BadRecordCounter | None:
    """Return a new bad-record counter for one of ``processes`` that share an epoch; None unless the data are shards."""
    return images.tally.new_counter(processes) if isinstance(images, ShardImages) else None


def iterate_batches(
    images: ImageDataset, order: Iterable[list[int]], num_workers: int, tally: BadRecordCounter | None
) -> Iterator[tuple[Tensor, Int64[Tensor, " b"], Sequence[int]]]:
    """Yield images [B, ...], labels [B] and indices of the batches of ``order``; ``num_workers`` processes read ahead.

    ``tally`` counts the bad records. Raises UserError if there are too many.
    """
    loader = DataLoader(
        BatchFetcher(images),
        batch_sampler=order,
        collate_fn=identity_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_stop_signals,
        generator=generator("workers"),  # otherwise the worker seed comes from the global generator
    )
    with _block_signals():
        stream = iter(loader)
    for found, labels, bad, indices in stream:
        if tally is not None:
            tally.note(bad, len(labels))
        yield found, labels, indices
