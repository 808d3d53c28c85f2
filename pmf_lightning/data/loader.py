"""Batches in a given order, whole, put together where they are read: in this process or in loading processes."""

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
    """``images`` as whole batches: images [B, ...], labels [B], bad records met, indices.

    Goes into a DataLoader with ``collate_fn=identity_collate``. A UserError comes in place of the bad records, for the
    main process to raise: from a loading process it would arrive wrapped in a traceback.
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
    """Leave a batch as the data set gave it."""
    return batch


def ignore_stop_signals(worker: int) -> None:
    """Let a loading process work on while its run stops, until the run itself ends it.

    A terminal, ``timeout`` and SLURM signal all processes of a run, which still needs the rest of its step.
    """
    heard = set(SIGNALS) - {signal.SIGTERM}
    for number in heard:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_by_the_parent, daemon=True).start()
    else:
        heard = SIGNALS  # macOS has none, and there SIGTERM ends it at once
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Block signals: processes that start meanwhile inherit that, until they call ``ignore_stop_signals``."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by_the_parent() -> None:
    run = parent_process().pid  # not getppid: a fork server may stand between
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)


def tally_of(images: ImageDataset, processes: int) -> BadRecordCounter | None:
    """Return a fresh count of bad records for one of so many processes that share an epoch; None where none can be."""
    return images.tally.afresh(processes) if isinstance(images, ShardImages) else None


def iterate_batches(
    images: ImageDataset, order: Iterable[list[int]], workers: int, tally: BadRecordCounter | None
) -> Iterator[tuple[Tensor, Int64[Tensor, " b"], Sequence[int]]]:
    """Yield images [B, ...], labels [B] and indices of the batches of ``order``, read ahead by ``workers`` processes.

    ``tally`` counts the bad records. Raises UserError where they are too many.
    """
    loader = DataLoader(
        BatchFetcher(images),
        batch_sampler=order,
        collate_fn=identity_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_stop_signals,
        generator=generator("workers"),  # else the seed of the workers comes from the global generator
    )
    with _signals_wait():
        stream = iter(loader)
    for found, labels, bad, indices in stream:
        if tally is not None:
            tally.note(bad, len(labels))
        yield found, labels, indices
