"""Distribute Muon's Newton-Schulz over ranks: each matrix is orthogonalised on one rank and the result is gathered.

``LocalMuon`` does everything on one device. With ``ReplicatedMuon`` (DDP) every device has every matrix: each
orthogonalises its share and all gather the results, which are therefore the same to the last bit. With ``ShardedMuon``
(FSDP) each device has some rows of every matrix: the rows are sent to the rank of the matrix and come back
orthogonalised. Nothing but the order of work depends on the number of devices.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Shape = tuple[int, int]
Work = Callable[[Tensor], Tensor]  # from a stack [n, rows, cols] to one


@dataclass(frozen=True)
class LocalMuon:
    """One device, or several that each do everything."""

    size = 1

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return ``work`` of each matrix, in their order; ``matrices`` are this device's parts of those ``shapes``."""
        return _in_stacks(matrices, work)


@dataclass(frozen=True)
class _Several:
    """Devices that share the work. ``exact`` is the dtype that holds results without loss, to travel in."""

    group: dist.ProcessGroup
    exact: torch.dtype

    @property
    def size(self) -> int:
        """How many devices work."""
        return self.group.size()


class ReplicatedMuon(_Several):
    """Devices that all have all matrices."""

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return ``work`` of each matrix, in their order, the same on all devices."""
        shares = assign(shapes, self.size)
        mine = shares[self.group.rank()]
        done = _in_stacks([matrices[i] for i in mine], work)
        longest = max(sum(_numel(shapes[i]) for i in share) for share in shares)
        sent = matrices[0].new_zeros(longest, dtype=self.exact)
        if done:
            flat = torch.cat([matrix.to(self.exact).flatten() for matrix in done])
            sent[: len(flat)] = flat
        received = sent.new_empty(self.size * longest)
        dist.all_gather_into_tensor(received, sent, group=self.group)
        results: dict[int, Tensor] = {}
        for share, row in zip(shares, received.view(self.size, longest), strict=True):
            sizes = [_numel(shapes[i]) for i in share]
            for i, flat in zip(share, row[: sum(sizes)].split(sizes), strict=True):
                results[i] = flat.view(shapes[i]).to(matrices[0].dtype)
        return [results[i] for i in range(len(shapes))]


class ShardedMuon(_Several):
    """Devices that each have some rows of every matrix, as FSDP2 cuts them."""

    def orthogonalised(self, matrices: Sequence[Tensor], shapes: Sequence[Shape], work: Work) -> list[Tensor]:
        """Return this device's rows of ``work`` of each matrix, in their order."""
        shares, me = assign(shapes, self.size), self.group.rank()
        own = [[_numel((_rows(shapes[i][0], me, self.size), shapes[i][1])) for i in share] for share in shares]
        theirs = [
            [_numel((_rows(shapes[i][0], rank, self.size), shapes[i][1])) for i in shares[me]]
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
        """Send each device its numbers, and return those of all devices for this one."""
        out = flat.new_empty(sum(_totals(received)))
        dist.all_to_all_single(out, flat, _totals(received), _totals(sent), group=self.group)
        return out


def distribution_of(
    parameters: Sequence[Tensor], split: bool, exact: torch.dtype
) -> LocalMuon | ReplicatedMuon | ShardedMuon:
    """Return who orthogonalises ``parameters``: with ``split``, all devices together that train them."""
    first = parameters[0]
    if isinstance(first, DTensor):
        return ShardedMuon(first.device_mesh.get_group(), exact)
    if split and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ReplicatedMuon(dist.group.WORLD, exact)
    return LocalMuon()


def assign(shapes: Sequence[Shape], workers: int) -> tuple[tuple[int, ...], ...]:
    """Deal matrices out, the costly ones first, each to the worker with the least to do; the same on every device."""
    return _deal(tuple(shapes), workers)


@lru_cache(maxsize=64)  # every step deals the same matrices out
def _deal(shapes: tuple[Shape, ...], workers: int) -> tuple[tuple[int, ...], ...]:
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0, worker) for worker in range(workers)]
    for i in sorted(range(len(shapes)), key=lambda i: (-_cost(shapes[i]), i)):
        load, worker = heappop(loads)
        shares[worker].append(i)
        heappush(loads, (load + _cost(shapes[i]), worker))
    return tuple(map(tuple, shares))


def chunks(shapes: Sequence[Shape], elements: int) -> Iterator[slice]:
    """Cut a list of matrices into stretches of at most so many numbers, or of one matrix."""
    start, held = 0, 0
    for end, shape in enumerate(shapes):
        if held and held + _numel(shape) > elements:
            yield slice(start, end)
            start, held = end, 0
        held += _numel(shape)
    if held:
        yield slice(start, len(shapes))


def _cost(shape: Shape) -> int:
    """Return the multiply-adds of a Newton-Schulz step, up to a factor."""
    small, large = sorted(shape)
    return small * small * (2 * large + small)


def _in_stacks(matrices: Sequence[Tensor], work: Work) -> list[Tensor]:
    """Work on all matrices of one shape at once; results in the order of ``matrices``."""
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        places[matrix.shape].append(i)
    results: list[Tensor] = list(matrices)
    for where in places.values():
        for i, result in zip(where, work(torch.stack([matrices[i] for i in where])), strict=True):
            results[i] = result
    return results


def _rows(rows: int, rank: int, size: int) -> int:
    """Return how many of ``rows`` a rank has, in chunks as torch.chunk makes them."""
    chunk = -(-rows // size)
    return max(0, min(rows, (rank + 1) * chunk) - rank * chunk)


def _numel(shape: Shape) -> int:
    return shape[0] * shape[1]


def _totals(sizes: list[list[int]]) -> list[int]:
    return [sum(part) for part in sizes]
