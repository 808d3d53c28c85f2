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

from pmf_lightning.data.dataset import Images
from pmf_lightning.data.shards.bad_records import BadRecord, Tally
from pmf_lightning.data.shards.images import ShardImages
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.rng import generator
from pmf_lightning.utils.signals import SIGNALS


class WholeBatches(Dataset):
    """``images`` as whole batches: images [B, ...], labels [B], bad records met, indices.

    Goes into a DataLoader with ``collate_fn=as_it_is``. A UserError comes in place of the bad records, for the main
    process to raise: from a loading process it would arrive wrapped in a traceback.
    """

    def __init__(self, images: Images):
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


def as_it_is(batch: Any) -> Any:
    """Leave a batch as the data set gave it."""
    return batch


def unhurried(worker: int) -> None:
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
    """Let signals wait; processes that are made meanwhile begin so, and none meets one before ``unhurried``."""
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


def tally_of(images: Images, processes: int) -> Tally | None:
    """Return a fresh count of bad records for one of so many processes that share an epoch; None where none can be."""
    return images.tally.afresh(processes) if isinstance(images, ShardImages) else None


def read(
    images: Images, order: Iterable[list[int]], workers: int, tally: Tally | None
) -> Iterator[tuple[Tensor, Int64[Tensor, " b"], Sequence[int]]]:
    """Yield images [B, ...], labels [B] and indices of the batches of ``order``, read ahead by ``workers`` processes.

    ``tally`` counts the bad records. Raises UserError where they are too many.
    """
    loader = DataLoader(
        WholeBatches(images),
        batch_sampler=order,
        collate_fn=as_it_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=unhurried,
        generator=generator("workers"),  # else the seed of the workers comes from the global generator
    )
    with _signals_wait():
        stream = iter(loader)
    for found, labels, bad, indices in stream:
        if tally is not None:
            tally.note(bad, len(labels))
        yield found, labels, indices
