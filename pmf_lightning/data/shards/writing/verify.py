"""Verify shards: read all digests, records and counts, and report every problem with its remedy."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pmf_lightning.data.shards.manifest import NAME, Manifest, ShardEntry
from pmf_lightning.data.shards.payloads import decode
from pmf_lightning.data.shards.tar import Index, digest_of, index_path, read_index
from pmf_lightning.data.shards.writing.processes import Tick, in_processes
from pmf_lightning.data.shards.writing.progress import LIST
from pmf_lightning.utils.bounded_files import open_tar
from pmf_lightning.utils.errors import UserError, some_of

REMEDY = "remove it and run the command that made the shards again"
MOST_NAMED = 5  # bad records reported per shard


@dataclass(frozen=True)
class VerifiedShard:
    """Result for one shard: descriptions of its problems, and its number of records per class."""

    problems: list[str]
    per_class: list[int]


def verify(folder: Path, manifest: Manifest, num_workers: int, progress: Callable[[int], None]) -> list[str]:
    """Read all shards of ``folder`` and return a line for every problem, with its remedy.

    ``progress`` is called with the number of records read.
    """
    problems, per_class = [], np.zeros(len(manifest.class_names), np.int64)
    check = partial(check_shard, folder=folder, manifest=manifest)
    with closing(in_processes(check, manifest.shards, num_workers, progress)) as results:
        for checked in results:
            problems += checked.problems
            per_class += checked.per_class
    if not problems and per_class.tolist() != manifest.per_class:
        problems.append(f"{folder / NAME}: its counts per class are not those of the shards; {REMEDY}")
    known = {entry.file for entry in manifest.shards}
    problems += [
        f"{tar}: it is not in a manifest; remove it" for tar in sorted(folder.glob("*.tar")) if tar.name not in known
    ]
    return sorted(problems) + _check_list(folder, manifest)


def _check_list(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / LIST
    try:
        listed = len(path.read_text(encoding="utf-8").splitlines()) - 1
    except (OSError, ValueError):
        return [f"{path}: cannot be read; run the command that made the shards again"]
    if listed != manifest.skipped:
        return [
            f"{path}: {listed} lines for {manifest.skipped} inputs without a record; run the command that made the "
            "shards again"
        ]
    return []


def check_shard(entry: ShardEntry, tick: Tick, folder: Path, manifest: Manifest) -> VerifiedShard:
    """Check one shard: size, digest, index against members, and every record as an image or latents."""
    tar = folder / entry.file
    none = [0] * len(manifest.class_names)
    if not tar.is_file():
        return VerifiedShard([f"{tar}: missing; run the command that made the shards again"], none)
    if tar.stat().st_size != entry.bytes:
        return VerifiedShard([f"{tar}: {tar.stat().st_size:,} bytes instead of {entry.bytes:,}; {REMEDY}"], none)
    problems = [] if digest_of(tar) == entry.digest else [f"{tar}: its digest differs from the manifest; {REMEDY}"]
    try:
        index = read_index(tar)
        labels = _check_records(tar, index, entry, manifest, tick, problems)
    except UserError:
        problems.append(f"{index_path(tar)}: cannot be read; {REMEDY}")
        return VerifiedShard(problems, none)
    except (tarfile.TarError, OSError, ValueError) as error:
        problems.append(f"{tar}: cannot be read ({error}); {REMEDY}")
        return VerifiedShard(problems, none)
    inside = [label for label in labels if 0 <= label < len(none)]
    return VerifiedShard(problems, np.bincount(np.array(inside, np.int64), minlength=len(none)).tolist())


def _check_records(
    tar: Path, index: Index, entry: ShardEntry, manifest: Manifest, tick: Tick, problems: list[str]
) -> list[int]:
    """Compare index and tar record by record and decode each; append to ``problems`` and return the tar's labels."""
    labels, bad = [], []
    for row, (member, content, label) in enumerate(_members(tar)):
        tick()
        labels.append(label)
        if row >= len(index.keys):
            continue
        expected = (f"{index.keys[row]}.{manifest.payload}", index.offsets[row], index.sizes[row], index.labels[row])
        if (member.name, member.offset_data, member.size, label) != expected:
            bad.append(f"{member.name} differs from the index")
        elif reason := _why_bad(content, manifest):
            bad.append(f"{index.keys[row]} ({reason})")
    if not len(labels) == len(index.keys) == entry.count:
        bad.append(f"{len(labels)} records, {len(index.keys)} in the index, {entry.count} in the manifest")
    if bad:
        problems.append(f"{tar}: {some_of(bad, MOST_NAMED, '; ')}; {REMEDY}")
    return labels


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes, int]]:
    """Yield the payloads of a shard as (member, bytes, label); ValueError if a label is missing."""
    length = path.stat().st_size
    with open_tar(path) as tar:
        while (member := tar.next()) is not None:
            label = tar.next()
            if label is None or not (member.isfile() and label.isfile()):
                raise ValueError(f"{member.name} has no label")
            if max(one.offset_data + one.size for one in (member, label)) > length:
                raise ValueError(f"{member.name} is longer than the tar")
            yield member, tar.extractfile(member).read(), int(tar.extractfile(label).read())
            tar.members = []  # otherwise the headers of the full file stay in memory


def _why_bad(content: bytes, manifest: Manifest) -> str:
    try:
        found = decode(content, manifest.payload, manifest.channels)
    except ValueError as error:
        return str(error)
    expected = [manifest.channels, manifest.resolution, manifest.resolution]
    expected = expected if manifest.kind == "pixels" else [2, *expected]
    return "" if list(found.shape) == expected else f"shape {list(found.shape)} instead of {expected}"
