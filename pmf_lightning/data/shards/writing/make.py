"""Make a folder of shards from inputs: finished shards are reused, the manifest is written last."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from pmf_lightning.data.images.listing import reasons
from pmf_lightning.data.shards import manifest
from pmf_lightning.data.shards.manifest import Manifest
from pmf_lightning.data.shards.payloads import PAYLOADS
from pmf_lightning.data.shards.tar import read_index
from pmf_lightning.data.shards.writing.inputs import Inputs, Unreadable
from pmf_lightning.data.shards.writing.pixels import encode_as, read_piece
from pmf_lightning.data.shards.writing.progress import Finished, making, read_note, write_list
from pmf_lightning.data.shards.writing.recipe import Recipe, ShardTask, shard_name, shard_tasks
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.free_space import free_disk
from pmf_lightning.utils.precision import Number

SAMPLE = 24  # images encoded for the size estimate

BLOCK = 512  # bytes of a tar block

HEADER = 128  # bytes of an npy header

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def bytes_per_record(inputs: Inputs, recipe: Recipe, latent_shape: tuple[int, ...] | None) -> float | None:
    """Return the bytes of a record with its label and headers: exact for npy, else the mean of a few images.

    None if none of these images can be read. ``latent_shape`` is [2, C, h, w] for latents.
    """
    if PAYLOADS[recipe.payload].format is None:
        pixels = recipe.channels * recipe.size**2
        values = pixels if latent_shape is None else 4 * math.prod(latent_shape)
        return float(_in_tar(HEADER + values))
    rows = np.unique(np.linspace(0, len(inputs) - 1, SAMPLE).astype(int))
    found = [read_piece(inputs.piece(int(row)), recipe) for row in rows]
    sizes = [_in_tar(len(encode_as(one.levels, recipe))) for one in found if not isinstance(one, str)]
    return float(np.mean(sizes)) if sizes else None


def check_disk(out: Path, inputs: Inputs, recipe: Recipe, waiting: int, per_record: float | None) -> str:
    """Return a line with the size of all shards and the free space; UserError if ``waiting`` records do not fit."""
    if per_record is None:
        return f"{counted(len(inputs), 'image')}; their size on disk is unknown: none of a sample can be read"
    free, needed = free_disk(out), waiting * per_record
    of_all = (
        f"{amount(len(inputs) * per_record)} for {counted(len(inputs), 'image')} in {counted(recipe.shards, 'shard')}"
    )
    if needed > free:
        raise UserError(
            f"out={out}: the shards need about {amount(needed)} more and {amount(free)} are free; set out to a larger "
            f"disk, or another payload ({', '.join(PAYLOADS)})"
        )
    return f"about {of_all} at {out}, {amount(free)} free"


def amount(count: Number) -> str:
    """Format a number of bytes, such as 1.5 GB."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 or count >= 100 else f"{count:.1f} {UNITS[power]}"


def _in_tar(payload: int) -> int:
    return BLOCK + -(-payload // BLOCK) * BLOCK + 2 * BLOCK


# Makes shards and yields them as they finish; the function receives the number of finished images.
Maker = Callable[[Iterable[ShardTask], Callable[[int], None]], Iterator[Finished]]


@dataclass(frozen=True)
class ShardingResult:
    """Result of sharding: manifest, unreadable inputs, shards ``reused`` from earlier runs, ``images`` of this run.

    ``unpacked`` is the number of compressed tars read from uncompressed copies.
    """

    manifest: Manifest
    unreadable: list[Unreadable]
    reused: int
    images: int
    seconds: float
    unpacked: int = 0


@dataclass(frozen=True)
class ShardingJob:
    """A sharding job: ``latent_shape`` is [2, C, h, w] for latents, ``origin`` the user's name of the inputs.

    More than a fraction ``max_unreadable`` of inputs without a record is an error.
    """

    inputs: Inputs
    recipe: Recipe
    out: Path
    origin: str
    max_unreadable: float
    latent_shape: tuple[int, ...] | None = None


def make_shards(job: ShardingJob, maker: Maker) -> ShardingResult:
    """Make the missing shards in ``job.out``, then the manifest.

    Raises UserError if the disk is too small, another run is active, existing shards have another recipe, or too many
    inputs are unreadable. Finished shards are never removed.
    """
    recipe, out, start = job.recipe, job.out, time.perf_counter()
    with making(out, recipe):
        notes = {number: read_note(out / shard_name(number)) for number in range(recipe.shards)}
        finished = {number: found for number, found in notes.items() if found is not None}
        missing = [number for number in notes if number not in finished]
        reused = sum(found.entry.count for found in finished.values())
        if missing:
            images = _announce(job, finished)
            (out / manifest.NAME).unlink(missing_ok=True)
            _make(job, maker, missing, finished, images)
        made = _finish(job, finished)
    seconds = time.perf_counter() - start
    unreadable, unpacked = _unreadable(job, finished), len(job.inputs.unpacked)
    return ShardingResult(made, unreadable, recipe.shards - len(missing), made.count - reused, seconds, unpacked)


def _announce(job: ShardingJob, reused: dict[int, Finished]) -> int:
    """Print the planned work and return the number of remaining images."""
    if reused:
        print(f"finished already: {len(reused):,} of {counted(job.recipe.shards, 'shard')}", flush=True)
    done = sum(found.entry.count + len(found.unreadable) for found in reused.values())
    waiting = len(job.inputs) - done
    per_record = bytes_per_record(job.inputs, job.recipe, job.latent_shape)
    print(check_disk(job.out, job.inputs, job.recipe, waiting, per_record), flush=True)
    return waiting


def _make(job: ShardingJob, maker: Maker, missing: list[int], finished: dict[int, Finished], images: int) -> None:
    """Make the shards ``missing`` and add them to ``finished``."""
    tasks = shard_tasks(job.inputs, job.recipe, job.out, missing)
    with tqdm(total=images, desc="sharding", unit="image", mininterval=0.5) as bar:
        with closing(maker(tasks, lambda done: bar.update(done - bar.n))) as results:
            for found in results:
                number = int(found.entry.file.removeprefix("shard-").removesuffix(".tar"))
                finished[number] = found
                _check_unreadable(job, finished)
        bar.update(images - bar.n)


def _unreadable(job: ShardingJob, finished: dict[int, Finished]) -> list[Unreadable]:
    """Return the inputs without a record: those of the listing, then those of the shards in order."""
    found = (one for number in sorted(finished) for one in finished[number].unreadable)
    return [*job.inputs.broken, *(replace(one, file=job.inputs.original(one.file)) for one in found)]


def _left_out(job: ShardingJob) -> list[Unreadable]:
    """Return the skipped files, each with its number of files if that is more than one."""
    root = job.inputs.root
    return [
        Unreadable(one.name, one.reason + (f", {one.count:,} files" if one.count != 1 else ""), str(root / one.name))
        for one in job.inputs.left_out
    ]


def _check_unreadable(job: ShardingJob, finished: dict[int, Finished]) -> None:
    """Raise UserError if too many inputs are unreadable, after writing the list of them."""
    found = _unreadable(job, finished)
    total = len(job.inputs) + len(job.inputs.broken)
    if len(found) > job.max_unreadable * total:
        path = write_list(job.out, [*_left_out(job), *found])
        raise UserError(
            f"{len(found):,} of {total:,} inputs cannot be read, more than max_unreadable={job.max_unreadable}: they "
            f"are listed in {path}; repair or remove them, or raise max_unreadable (finished shards are reused)"
        )


def _finish(job: ShardingJob, finished: dict[int, Finished]) -> Manifest:
    """Write the list of unreadable inputs, then the manifest."""
    _check_unreadable(job, finished)
    unreadable = _unreadable(job, finished)
    not_used = [*_left_out(job), *unreadable]
    write_list(job.out, not_used)
    done: Counter[str] = Counter()
    for found in finished.values():
        done.update(found.done)
    recipe, shape = job.recipe, job.latent_shape
    labels = [read_index(job.out / shard_name(number)).labels for number in sorted(finished)]
    made = Manifest(
        kind=recipe.kind,
        payload=recipe.payload,
        quality=recipe.quality,
        resolution=recipe.size if shape is None else shape[-1],
        channels=recipe.channels if shape is None else shape[1],
        crop=f"{recipe.crop}, {recipe.size} px",
        origin=job.origin,
        autoencoder=recipe.autoencoder,
        class_names=job.inputs.class_names,
        per_class=np.bincount(np.concatenate(labels), minlength=len(job.inputs.class_names)).tolist(),
        skipped=len(not_used),
        shards=[finished[number].entry for number in sorted(finished)],
        background=recipe.background,
        left_out=reasons(job.inputs.left_out),
        done=dict(done),
    )
    made.write(job.out)
    return made
