"""Write one shard of images: read, crop and encode each image; unreadable ones are recorded."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import UnidentifiedImageError

from pmf_lightning.data.images.decoder import check_damaged
from pmf_lightning.data.shards.payloads import Pixels, encode
from pmf_lightning.data.shards.tar import Record, write_shard
from pmf_lightning.data.shards.writing.inputs import SourceImage, Unreadable
from pmf_lightning.data.shards.writing.processes import Tick
from pmf_lightning.data.shards.writing.progress import Finished, note
from pmf_lightning.data.shards.writing.recipe import Recipe, ShardTask
from pmf_lightning.data.transforms import Square, read_square


def make_pixels(task: ShardTask, tick: Tick) -> Finished:
    """Write one shard atomically; OSError if it cannot be written."""
    unreadable: list[Unreadable] = []
    done: Counter[str] = Counter()

    def records() -> Iterator[Record]:
        for piece in task.pieces:
            tick()
            found = read_piece(piece, task.recipe)
            if isinstance(found, str):
                unreadable.append(missing(piece, found, task))
            else:
                done.update(found.done)
                yield Record(piece.key, piece.label, encode_as(found.levels, task.recipe), task.recipe.payload)

    finished = Finished(write_shard(task.tar, records()), unreadable, dict(done))
    note(task.tar, finished)
    return finished


def read_piece(piece: SourceImage, recipe: Recipe) -> Square | str:
    """Return the cropped image of one input, or the reason why it is damaged; UserError for other failures."""
    try:
        return read_square(piece.read(), recipe.size, recipe.channels, recipe.background)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message contains a memory address, which differs between runs
        return "no image of a known format"
    except Exception as reason:  # Pillow raises many exceptions for damaged files
        check_damaged(reason, Path(piece.file))
        return f"{type(reason).__name__}: {reason}"


def missing(piece: SourceImage, reason: str, task: ShardTask) -> Unreadable:
    """Return the entry of an input without a record in its shard."""
    return Unreadable(piece.key, reason, piece.file, task.tar.name)


def encode_as(image: Pixels, recipe: Recipe) -> bytes:
    """Return the payload bytes of an image."""
    return encode(image, recipe.payload, recipe.quality)
