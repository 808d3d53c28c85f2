"""Split work over the ranks of torch.distributed, with results independent of the number of ranks."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

from pmf_lightning.objectives.base import OneDevice
from pmf_lightning.utils.errors import UserError

Result = TypeVar("Result")


def rank_and_world() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) if torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def chunks_of_this_rank(n: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of this rank's chunks of ``batch_size`` images: chunk k goes to rank ``k % world``.

    A chunk holds the same images for any number of ranks, so networks get the same batches and return equal bits.
    """
    rank, world = rank_and_world()
    for first in range(rank * batch_size, n, world * batch_size):
        yield first, min(first + batch_size, n)


def gather_objects(mine: Result) -> list[Result]:
    """Return the objects of all ranks, by rank. A collective: all ranks must call it."""
    world = rank_and_world()[1]
    if world == 1:
        return [mine]
    everyone: list[Result | None] = [None] * world
    dist.all_gather_object(everyone, mine)
    return everyone


def on_all_ranks(work: Callable[[], Result]) -> Result:
    """Run ``work`` on every rank and return its result; if it fails on one rank, all ranks fail.

    Without this, the healthy ranks would hang in the next collective. The failed rank raises its error unchanged. The
    others raise a UserError with its text, of the same subclass (such as NonFiniteError) if it was one.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as reason:
        error = reason
    bad_input = isinstance(error, UserError)
    message = str(error) if bad_input else f"{type(error).__name__}: {error}"
    failures = gather_objects(error and (type(error) if bad_input else UserError, message))
    if error is not None:
        raise error
    for other, failure in enumerate(failures):
        if failure:
            raise failure[0](f"rank {other}: {failure[1]}")
    return result


def on_rank_zero(work: Callable[[], Result]) -> Result:
    """Run ``work`` on rank 0 only and return its result on all ranks; its errors are raised on all ranks."""
    rank, world = rank_and_world()
    result = on_all_ranks(lambda: work() if rank == 0 else None)
    if world > 1:
        gathered = [result]
        dist.broadcast_object_list(gathered, src=0)
        result = gathered[0]
    return result


def total(counts: dict[str, int]) -> dict[str, int]:
    """Sum counts by name over all ranks. A collective: all ranks must call it."""
    summed: Counter[str] = Counter()
    for one in gather_objects(dict(counts)):
        summed.update(one)
    return dict(summed)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sums over all ranks. A collective, without the barrier of Lightning's ``strategy.reduce``.

    With NCCL a barrier makes the host wait until the device has done all queued work; an all-reduce is only queued.
    """
    if rank_and_world()[1] > 1:
        values = values.contiguous().clone()
        dist.all_reduce(values)
    return values


class Devices(OneDevice):
    """Exchange between the devices of a trainer; see ``OneDevice``."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the means over all devices from this device's sums and counts."""
        if self.trainer.world_size > 1:
            sums, counts = sum_over_ranks(torch.stack((sums, counts)))
        return sums / counts

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all devices in the order of the global batch, with gradients for this device's rows."""
        return rows if self.trainer.world_size == 1 else _Gather.apply(rows)


def gather_rows(micro_batches: Sequence[Tensor]) -> Tensor:
    """Return the rows of all micro-batches and ranks in the order of the global batch, without gradient.

    ``micro_batches`` are those of this rank, [n,...] each; the result is [n x micro-batches x ranks,...].
    """
    mine = torch.stack([part.detach() for part in micro_batches], dim=1)
    if rank_and_world()[1] == 1:
        return mine.flatten(0, 1)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts, dim=2).flatten(0, 2)


def of_rank_zero(value: Tensor) -> Tensor:
    """Return the tensor of rank 0 on all ranks; they must call it with tensors of one shape."""
    if rank_and_world()[1] > 1:
        value = value.contiguous().clone()
        dist.broadcast(value, src=0)
    return value


class _Gather(torch.autograd.Function):
    """All-gather whose backward returns the gradient of this rank's rows, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, interleaved."""
        return gather_rows([rows])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient of this rank's rows."""
        world = dist.get_world_size()
        return grad[dist.get_rank() :: world] * world
