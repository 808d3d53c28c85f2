"""Write shards of latents: threads prefetch the images, which are encoded in batches of fixed composition."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from pmf_lightning.data.shards.payloads import Latents, encode
from pmf_lightning.data.shards.tar import Record, write_shard
from pmf_lightning.data.shards.writing.inputs import SourceImage, Unreadable
from pmf_lightning.data.shards.writing.pixels import missing, read_piece
from pmf_lightning.data.shards.writing.processes import Tick
from pmf_lightning.data.shards.writing.progress import Finished, note
from pmf_lightning.data.shards.writing.recipe import ShardTask
from pmf_lightning.data.transforms import Square, to_float

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LatentMaker:
    """Encodes images into shards of latents.

    Args:
        encode: float images [b, 3, size, size] in [-1, 1], on ``device``, to mean and standard deviation of their raw
            latents, each float32 [b, C, h, w].
        batch: images encoded together, in the order of the shard, so that a shard always has the same batches. Its
            bytes are reproducible only if ``encode`` is deterministic, as on a CPU.
        threads: number of threads that read images.
    """

    encode: Encode
    device: str
    batch: int
    threads: int

    def __call__(self, task: ShardTask, tick: Tick) -> Finished:
        """Write one shard atomically; OSError if it cannot be written."""
        unreadable: list[Unreadable] = []
        done: Counter[str] = Counter()

        def records() -> Iterator[Record]:
            for pieces, found in self._read_ahead(task):
                both = list(zip(pieces, found, strict=True))
                unreadable.extend(missing(piece, reason, task) for piece, reason in both if isinstance(reason, str))
                images = [(piece, square.levels) for piece, square in both if not isinstance(square, str)]
                done.update(what for square in found if not isinstance(square, str) for what in square.done)
                for (piece, _), values in zip(images, self._encode([image for _, image in images]), strict=True):
                    yield Record(piece.key, piece.label, encode(values, task.recipe.payload), task.recipe.payload)
                for _ in pieces:
                    tick()

        finished = Finished(write_shard(task.tar, records()), unreadable, dict(done))
        note(task.tar, finished)
        return finished

    def make_each(self, tasks: Iterable[ShardTask], progress: Callable[[int], None]) -> Iterator[Finished]:
        """Write shards sequentially in this process, which owns the device (a ``make.Maker``)."""
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            progress(done)

        for task in tasks:
            yield self(task, tick)

    def _read_ahead(self, task: ShardTask) -> Iterator[tuple[list[SourceImage], list[Square | str]]]:
        """Yield the decoded batches of a shard; the next batch is read while one is encoded."""
        batches = [task.pieces[first : first + self.batch] for first in range(0, len(task.pieces), self.batch)]
        with ThreadPoolExecutor(self.threads) as pool:
            reading = []
            for pieces in batches:
                reading.append((pieces, [pool.submit(read_piece, piece, task.recipe) for piece in pieces]))
                if len(reading) > 1:
                    yield _result(*reading.pop(0))
            yield from (_result(*batch) for batch in reading)

    def _encode(self, images: list[UInt8[np.ndarray, "3 size size"]]) -> list[Latents]:
        if not images:
            return []
        mean, std = self.encode(to_float(torch.from_numpy(np.stack(images)).to(self.device)))
        return list(torch.stack([mean, std], 1).float().cpu().numpy())


def weights_digest(network: nn.Module) -> str:
    """Return a hex digest of the names and values of all weights of a network."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _result(pieces: list[SourceImage], futures: list) -> tuple[list[SourceImage], list[Square | str]]:
    return pieces, [future.result() for future in futures]
