"""The list of source images: location, record name and label of each. Listing reads no pixel."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pmf_lightning.data.images.class_folders import image_tree
from pmf_lightning.data.images.files import MOST_BYTES, ZipFiles, ZipMember
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.utils.cache import digest

LONGEST = 90  # bytes: with its extension a name fits the 100 bytes of a ustar header


def record_keys(names: Iterable[str]) -> list[str]:
    """Return a unique key for every name, a path without its extension, in order.

    WebDataset treats everything after the first dot as the extension, so dots become underscores. Unprintable
    characters do too. Long names are truncated and get a digest. Repeated keys get "-2", "-3", ... appended. Keys only
    depend on the names and their order.
    """
    keys: dict[str, None] = {}  # an ordered set
    for name in names:
        base = key = _cleaned(name)
        number = 1
        while key in keys:
            number += 1
            key = f"{base}-{number}"
        keys[key] = None
    return list(keys)


def _cleaned(name: str) -> str:
    key = name.replace(".", "_").replace("\\", "_").strip("/")
    if not key.isprintable():
        key = "".join(letter if letter.isprintable() else "_" for letter in key)
    if len(key.encode()) <= LONGEST - 8:  # leaves space for a number
        return key
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"{key.encode()[:50].decode(errors='ignore')}-{digest}"


@dataclass(frozen=True)
class Unreadable:
    """An input without a record: its key, the reason, its file, and the shard that it is missing from."""

    key: str
    reason: str
    file: str
    shard: str = ""


class SourceImage(NamedTuple):  # a NamedTuple, because a million of them are created and sent to other processes
    """Location of one image: a file, ``size`` bytes at ``start`` of a file, or a member of a zip."""

    key: str
    label: int
    file: str
    start: int = 0
    size: int | None = None
    member: ZipMember | None = None

    def read(self) -> bytes:
        """Return the bytes of the image file; OSError if they cannot be read completely."""
        if self.member is not None:
            return self.member.read(self.file)
        with open(self.file, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if self.size is None and length > MOST_BYTES:
                raise OSError(f"{length:,} bytes are no image")
            if self.size is not None and self.start + self.size > length:
                raise OSError(f"the tar ends after {max(0, length - self.start):,} of {self.size:,} bytes")
            file.seek(self.start)
            content = file.read() if self.size is None else file.read(self.size)
        if not content:
            raise OSError("the file is empty")
        return content


@dataclass(frozen=True)
class Inputs:
    """All source images, in an order that depends only on their names.

    Image i is in file ``names[files[i]]`` below ``root``, at byte ``starts[i]``, with ``sizes[i]`` bytes (-1: the full
    file). It has key ``keys[i]`` and label ``labels[i]``, whose name is ``class_names[label]``. ``broken`` has inputs
    that the listing could not read, ``left_out`` files that are not images, ``summary`` the lines of the summary.
    ``unpacked`` maps the names of compressed tars to their uncompressed copies. ``members`` are the images in a zip, at
    ``starts``.
    """

    root: Path
    names: list[str]
    files: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    keys: list[str]
    labels: Int64[np.ndarray, " n"]
    class_names: list[str]
    broken: list[Unreadable]
    left_out: list[LeftOut] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    unpacked: dict[str, str] = field(default_factory=dict)
    members: list[ZipMember] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def piece(self, index: int) -> SourceImage:
        """Return the location of image ``index``."""
        size = int(self.sizes[index])
        return SourceImage(
            key=self.keys[index],
            label=int(self.labels[index]),
            file=self.unpacked.get(name := self.names[self.files[index]]) or os.path.join(self.root, name),
            start=int(self.starts[index]),
            size=None if size < 0 else size,
            member=self.members[index] if self.members else None,
        )

    def original(self, file: str) -> str:
        """Return what the uncompressed copy ``file`` was made of: a tar, or tables; any other path is unchanged."""
        originals = (self.root / name for name, plain in self.unpacked.items() if plain == file)
        return next((str(path if path.exists() else self.root) for path in originals), file)

    def fingerprint(self) -> str:
        """Return a hex digest of names, labels and positions, not of contents; it is independent of ``root``."""
        numbers = (digest(array.tobytes().hex()) for array in (self.files, self.starts, self.sizes, self.labels))
        return digest(*numbers, "\n".join(self.names), "\n".join(self.keys), "\n".join(self.class_names))


def folder_inputs(root: Path, label: str = "auto") -> Inputs:
    """List a folder of class folders, or a zip, by the rules of ``data=folder`` (see ``image_tree``).

    Raises UserError if there are no class folders, or one without images.
    """
    tree = image_tree(str(root), "in", label, "label")
    count, files = len(tree.names), tree.files
    zipped = isinstance(files, ZipFiles)
    members = [files.members[name] for name in tree.names] if zipped else []
    return Inputs(
        root=files.path.parent if zipped else root,
        names=[files.path.name] if zipped else tree.names,
        files=np.zeros(count, np.int64) if zipped else np.arange(count),
        starts=np.array([one.start for one in members], np.int64) if zipped else np.zeros(count, np.int64),
        sizes=np.array([one.packed for one in members], np.int64) if zipped else np.full(count, -1),
        keys=record_keys(os.path.splitext(name)[0] for name in tree.names),
        labels=np.array(tree.labels, np.int64),
        class_names=tree.class_names,
        broken=[],
        left_out=tree.left_out,
        summary=tree.summary(),
        members=members,
    )
