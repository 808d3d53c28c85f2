"""The manifest of a folder of shards, ``manifest.json``; it is written last and marks the folder as complete."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pmf_lightning.utils.bounded_files import as_record, read_json
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.errors import UserError

NAME = "manifest.json"
FORMAT = 1  # incremented for changes that older readers would misread
KINDS = ("pixels", "latents")
MAKE = "python -m pmf_lightning.shard in=<images> out=<folder>"


@dataclass(frozen=True)
class ShardEntry:
    """One tar: file name, number of records, size in bytes, and blake2b hex digest."""

    file: str
    count: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """Common properties of the shards of a folder, and the list of shards.

    ``kind`` is pixels (uint8 images) or latents (mean and standard deviation of an autoencoder's raw latents).
    ``payload`` is the storage format of a record (see payloads.PAYLOADS), ``quality`` only for jpg. ``resolution`` and
    ``channels`` are those of a model's input, in pixels or latents. ``crop`` is the rule of the square crop, ``origin``
    the source of the images, ``autoencoder`` the weights for latents. Label i is ``class_names[i]`` with
    ``per_class[i]`` records. The ``skipped`` lines of unreadable.tsv list inputs without a record. ``left_out`` counts
    the files that are not images by reason. ``done`` counts the conversions of the decoder. Transparent pixels show
    ``background``. These last three are missing in manifests of earlier versions.
    """

    kind: str
    payload: str
    quality: int | None
    resolution: int
    channels: int
    crop: str
    origin: str
    autoencoder: str | None
    class_names: list[str]
    per_class: list[int]
    skipped: int
    shards: list[ShardEntry]
    background: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of records of all shards."""
        return sum(shard.count for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        with atomic_write(folder / NAME) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "count": self.count, **asdict(self)}, indent=1) + "\n")


def read_manifest(folder: Path, key: str = "data.root") -> Manifest:
    """Read the manifest of ``folder``; UserError, naming the option ``key``, if it is missing or of another format."""
    path = folder / NAME
    make = "make shards with python -m pmf_lightning.shard in=<images> out=<folder> size=<pixels>"
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: there is no such folder; {make}")
    if not path.is_file():
        raise UserError(f"{key}={folder}: it holds no {NAME}, so it is not a finished set of shards; {make}")
    try:
        return _parse(read_json(path), path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the command that made the shards again") from error


def manifest_of(root: str | None, name: str) -> Manifest:
    """Read the manifest of ``data.root``; UserError if it is not set or has no shards."""
    if root is None:
        raise UserError(f"data={name} needs its WebDataset shards: set data.root to their folder; {MAKE} makes them")
    return read_manifest(Path(root).expanduser())


def shards_say(root: str | None, what: str) -> int:
    """Return the property ``what`` (resolution, channels or classes) of the shards in ``root``; raises UserError."""
    manifest = manifest_of(root, "shards")
    return len(manifest.class_names) if what == "classes" else getattr(manifest, what)


def _parse(content: Any, path: Path) -> Manifest:
    if not isinstance(content, dict) or not isinstance(content.get("shards"), list):
        raise ValueError("it holds no list of shards")
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is of another format than {FORMAT}; make the shards again with this version")
    count = content.pop("count", None)
    shards = [as_record(ShardEntry, entry) for entry in content.pop("shards")]
    manifest = as_record(Manifest, {**content, "shards": shards})
    if manifest.kind not in KINDS or min(manifest.resolution, manifest.channels) < 1:
        raise ValueError(f"kind={manifest.kind} resolution={manifest.resolution} channels={manifest.channels}")
    if len(manifest.per_class) != len(manifest.class_names):
        raise ValueError(f"{len(manifest.class_names)} names of classes, {len(manifest.per_class)} counts")
    if outside := [entry.file for entry in shards if Path(entry.file).name != entry.file or "\0" in entry.file]:
        raise ValueError(f"the shard {outside[0]!r:.60} is not in this folder")
    if not count == manifest.count == sum(manifest.per_class):
        raise ValueError(f"{count} records in all, {manifest.count} in shards, {sum(manifest.per_class)} in classes")
    return manifest
