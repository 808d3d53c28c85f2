"""Distribute Muon's Newton-Schulz over ranks: each matrix is orthogonalised on one rank and the result is gathered.

``LocalMuon`` orthogonalises every matrix on its own device. With ``ReplicatedMuon`` (DDP) every rank has every matrix:
each orthogonalises a share and the results are all-gathered, so they are bit-identical on all ranks. With
``ShardedMuon`` (FSDP) each rank has some rows of every matrix: the rows are sent to the rank of the matrix,
orthogonalised there and sent back. The number of ranks only changes the order of work.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush

import torch
import torch.distributed as dist
from torch import Tensor

from pmf_lightning.distributed.dtensor import is_dtensor

Shape = tuple[int, int]
Work = Callable[[Tensor], Tensor]  # maps a stack [n, rows, cols] to a stack


@dataclass(frozen=True)
class LocalMuon:
    """No distribution: every rank orthogonalises all matrices."""

    size = 1

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return ``work`` of each matrix, in order; ``matrices`` are this rank's parts of matrices of ``shapes``."""
        return _in_stacks(matrices, work)


@dataclass(frozen=True)
class _Several:
    """Ranks that share the work. ``exact`` is the dtype for communication, which represents results without loss."""

    group: dist.ProcessGroup
    exact: torch.dtype

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()


class ReplicatedMuon(_Several):
    """Ranks that each have all matrices, as with DDP."""

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return ``work`` of each matrix, in order, identical on all ranks."""
        shares = assign(shapes, self.size)
        mine = shares[self.group.rank()]
        done = _in_stacks([matrices[i] for i in mine], work)
        longest = max(sum(math.prod(shapes[i]) for i in share) for share in shares)
        sent = matrices[0].new_zeros(longest, dtype=self.exact)
        if done:
            flat = torch.cat([matrix.to(self.exact).flatten() for matrix in done])
            sent[: len(flat)] = flat
        received = sent.new_empty(self.size * longest)
        dist.all_gather_into_tensor(received, sent, group=self.group)
        results: dict[int, Tensor] = {}
        for share, row in zip(shares, received.view(self.size, longest), strict=True):
            sizes = [math.prod(shapes[i]) for i in share]
            for i, flat in zip(share, row[: sum(sizes)].split(sizes), strict=True):
                results[i] = flat.view(shapes[i]).to(matrices[0].dtype)
        return [results[i] for i in range(len(shapes))]


class ShardedMuon(_Several):
    """Ranks that each have some rows of every matrix, as FSDP2 shards them."""

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return this rank's rows of ``work`` of each matrix, in order."""
        shares, me = assign(shapes, self.size), self.group.rank()
        own = [[math.prod((_rows(shapes[i][0], me, self.size), shapes[i][1])) for i in share] for share in shares]
        theirs = [
            [math.prod((_rows(shapes[i][0], rank, self.size), shapes[i][1])) for i in shares[me]]
            for rank in range(self.size)
        ]
        order = [i for share in shares for i in share]
        flat = torch.cat([matrices[i].flatten() for i in order])
        received = self._exchange(flat, own, theirs)
        pieces = [part.split(sizes) for part, sizes in zip(received.split(_totals(theirs)), theirs, strict=True)]
        mine = [
            torch.cat([pieces[rank][k] for rank in range(self.size)]).view(shapes[i]) for k, i in enumerate(shares[me])
        ]
        done = [matrix.to(self.exact).flatten() for matrix in _in_stacks(mine, work)]
        cut = [matrix.split([sizes[k] for sizes in theirs]) for k, matrix in enumerate(done)]
        back = [cut[k][rank] for rank in range(self.size) for k in range(len(done))]
        flat = torch.cat(back) if back else flat.new_empty(0, dtype=self.exact)
        returned = self._exchange(flat, theirs, own).to(matrices[0].dtype)
        results = dict(zip(order, returned.split([size for sizes in own for size in sizes]), strict=True))
        return [results[i].view_as(matrices[i]) for i in range(len(shapes))]

    def _exchange(self, flat: Tensor, sent: list[list[int]], received: list[list[int]]) -> Tensor:
        """All-to-all: send each rank its part of ``flat``, and return the parts received from all ranks."""
        out = flat.new_empty(sum(_totals(received)))
        dist.all_to_all_single(out, flat, _totals(received), _totals(sent), group=self.group)
        return out


def distribution_of(
    parameters: Sequence[Tensor], distribute: bool, exact: torch.dtype
) -> LocalMuon | ReplicatedMuon | ShardedMuon:
    """Return the distribution for ``parameters``; without ``distribute``, replicated ones use ``LocalMuon``."""
    first = parameters[0]
    if is_dtensor(first):
        return ShardedMuon(first.device_mesh.get_group(), exact)
    if distribute and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ReplicatedMuon(dist.group.WORLD, exact)
    return LocalMuon()


def assign(shapes: Sequence[Shape], workers: int) -> tuple[tuple[int, ...], ...]:
    """Assign matrices to workers, most expensive first, each to the least loaded worker; the same on every rank."""
    return _deal(tuple(shapes), workers)


@lru_cache(maxsize=64)  # every step assigns the same matrices
def _deal(shapes: tuple[Shape, ...], workers: int) -> tuple[tuple[int, ...], ...]:
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0, worker) for worker in range(workers)]
    for i in sorted(range(len(shapes)), key=lambda i: (-_cost(shapes[i]), i)):
        load, worker = heappop(loads)
        shares[worker].append(i)
        heappush(loads, (load + _cost(shapes[i]), worker))
    return tuple(map(tuple, shares))


def chunks(shapes: Sequence[tuple[int, ...]], elements: int) -> Iterator[slice]:
    """Split a list of tensors, such as matrices, into slices of at most ``elements`` elements, or of one tensor."""
    start, held = 0, 0
    for end, shape in enumerate(shapes):
        if held and held + math.prod(shape) > elements:
            yield slice(start, end)
            start, held = end, 0
        held += math.prod(shape)
    if held:
        yield slice(start, len(shapes))


def _cost(shape: Shape) -> int:
    """Return the multiply-adds of a Newton-Schulz step, up to a factor."""
    small, large = sorted(shape)
    return small * small * (2 * large + small)


def _in_stacks(matrices: Sequence[Tensor], work: Work) -> list[Tensor]:
    """Apply ``work`` to stacks of matrices of the same shape; return the results in the order of ``matrices``."""
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        places[matrix.shape].append(i)
    results: list[Tensor] = list(matrices)
    for where in places.values():
        stack = torch.stack([matrices[i] for i in where]) if len(where) > 1 else matrices[where[0]][None]
        for i, result in zip(where, work(stack), strict=True):
            results[i] = result
    return results


def _rows(rows: int, rank: int, size: int) -> int:
    """Return the number of ``rows`` on a rank, sharded as by torch.chunk."""
    chunk = -(-rows // size)
    return max(0, min(rows, (rank + 1) * chunk) - rank * chunk)


def _totals(sizes: list[list[int]]) -> list[int]:
    return [sum(part) for part in sizes]
