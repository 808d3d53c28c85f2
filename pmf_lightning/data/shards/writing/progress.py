"""Progress of sharding: a hidden file per finished tar, so that a stopped run can resume."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pmf_lightning.data.shards import manifest
from pmf_lightning.data.shards.manifest import ShardEntry
from pmf_lightning.data.shards.tar import read_index
from pmf_lightning.data.shards.writing.inputs import Unreadable
from pmf_lightning.data.shards.writing.recipe import Recipe, check_recipe
from pmf_lightning.data.shards.writing.tar_files import UNPACKED
from pmf_lightning.utils.bounded_files import as_record, read_json
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.locks import held

NOTES = ".progress"
LOCK = ".lock"
LIST = "unreadable.tsv"
PATIENCE = 10.0  # seconds to wait for the lock: workers of a killed run exit at their next image


@dataclass(frozen=True)
class Finished:
    """A finished shard, its unreadable inputs, and the number of images per conversion of the decoder."""

    entry: ShardEntry
    unreadable: list[Unreadable]
    done: dict[str, int]


@contextmanager
def making(out: Path, recipe: Recipe) -> Iterator[None]:
    """Lock ``out`` for writing shards of ``recipe``, and remove the partial files of a killed run.

    Raises UserError if another process holds the lock, or if ``out`` has other files or shards of another recipe.
    """
    with held(out / LOCK, f"out={out}", "is making shards there; wait for it, or set another out", PATIENCE):
        _claim(out, recipe)
        for partial in (*out.glob(".shard-*.partial"), *out.glob(f".{manifest.NAME}.*.partial")):
            partial.unlink(missing_ok=True)
        yield


def _claim(out: Path, recipe: Recipe) -> None:
    path = out / NOTES / "recipe.json"
    if path.is_file() and any(out.glob("shard-*.tar")):  # without a shard, any recipe may take the place of this one
        try:
            stored = read_json(path)
            if isinstance(stored, dict):
                stored = {"background": "none", **stored}  # earlier versions have no background
            known = as_record(Recipe, stored)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); set another out, or remove {out}") from error
        check_recipe(recipe, known, out)
        return
    if foreign := sorted(entry.name for entry in out.iterdir() if entry.name not in (LOCK, NOTES, UNPACKED)):
        raise UserError(f"out={out}: it contains other files ({', '.join(foreign[:3])}); set another out")
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(asdict(recipe), indent=1) + "\n")


def note(tar: Path, finished: Finished) -> None:
    """Record that a shard is finished."""
    with atomic_write(_note_of(tar)) as partial:
        partial.write_text(json.dumps(asdict(finished), indent=1) + "\n")


def read_note(tar: Path) -> Finished | None:
    """Return the record of a finished shard, or None unless its tar and index are complete.

    Completeness is checked by size, since tars are renamed after the last byte. ``verify`` checks the digests.
    """
    try:
        noted = read_json(_note_of(tar))
        entry, unreadable = noted["entry"], noted["unreadable"]
        parts = {
            "entry": as_record(ShardEntry, entry),
            "unreadable": [as_record(Unreadable, one) for one in unreadable],
        }
        finished = as_record(Finished, {**noted, **parts})
        index = read_index(tar)
        complete = tar.stat().st_size == finished.entry.bytes and len(index.keys) == finished.entry.count
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return None
    return finished if complete else None


def write_list(out: Path, unreadable: list[Unreadable]) -> Path:
    """Write ``unreadable.tsv``: key, reason, file and shard of every input without a record."""
    path = out / LIST
    lines = ["key\treason\tfile\tshard"]
    lines += ["\t".join(" ".join(field.split()) for field in asdict(one).values()) for one in unreadable]
    with atomic_write(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def _note_of(tar: Path) -> Path:
    return tar.parent / NOTES / f"{tar.stem}.json"
