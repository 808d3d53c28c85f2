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
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.utils.cache import digest

LONGEST = 90  # bytes: with its ending a name stays within the 100 of the plainest tar header


def record_keys(names: Iterable[str]) -> list[str]:
    """Return a key for every name, a path without its ending, in order.

    WebDataset takes what follows the first dot for an ending, so dots become underscores, as does what cannot be
    printed; names that are too long keep their beginning and get a digest. A key that was given already gets "-2",
    "-3", ... behind it: keys depend on the names and their order alone.
    """
    keys: dict[str, None] = {}  # keeps the order
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
    if len(key.encode()) <= LONGEST - 8:  # room for a number
        return key
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"{key.encode()[:50].decode(errors='ignore')}-{digest}"


MOST_BYTES = 2**30  # of the file of an image


@dataclass(frozen=True)
class Unreadable:
    """An input that gave no record: its key, why, the file it is in, and the shard that it is missing from."""

    key: str
    reason: str
    file: str
    shard: str = ""


class SourceImage(NamedTuple):  # a million of them are made and sent to other processes: the lightest there is
    """Where one image lies: a file, or ``size`` bytes at ``start`` of a file."""

    key: str
    label: int
    file: str
    start: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the bytes of the image file; OSError where they cannot be had, or not all."""
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
    """All images, in an order that depends on their names alone.

    Image i is file ``names[files[i]]`` below ``root``, from ``starts[i]`` on, ``sizes[i]`` bytes (-1: all there are),
    with key ``keys[i]`` and label ``labels[i]``, which is ``class_names[label]``. ``broken`` holds what the listing
    itself could not read, ``left_out`` what is not meant to be an image, ``said`` the lines that tell what was found;
    ``unpacked`` maps the names of compressed tars to their plain copies.
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
    said: list[str] = field(default_factory=list)
    unpacked: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def piece(self, index: int) -> SourceImage:
        """Say where image ``index`` lies."""
        size = int(self.sizes[index])
        return SourceImage(
            key=self.keys[index],
            label=int(self.labels[index]),
            file=self.unpacked.get(name := self.names[self.files[index]]) or os.path.join(self.root, name),
            start=int(self.starts[index]),
            size=None if size < 0 else size,
        )

    def original(self, file: str) -> str:
        """Return the path of the compressed tar that the plain copy ``file`` was made of; any other path as it is."""
        return next((str(self.root / name) for name, plain in self.unpacked.items() if plain == file), file)

    def fingerprint(self) -> str:
        """Return hex digits of names, labels and places, not of the contents; the same wherever the folder lies."""
        numbers = (digest(array.tobytes().hex()) for array in (self.files, self.starts, self.sizes, self.labels))
        return digest(*numbers, "\n".join(self.names), "\n".join(self.keys), "\n".join(self.class_names))


def folder_inputs(root: Path) -> Inputs:
    """List a folder that holds a folder per class, by the rule of ``data=folder`` (see ``image_tree``).

    Raises UserError where there is no class folder or one without an image.
    """
    tree = image_tree(str(root), "in")
    count = len(tree.names)
    return Inputs(
        root=root,
        names=tree.names,
        files=np.arange(count),
        starts=np.zeros(count, np.int64),
        sizes=np.full(count, -1),
        keys=record_keys(os.path.splitext(name)[0] for name in tree.names),
        labels=np.array(tree.labels, np.int64),
        class_names=tree.class_names,
        broken=[],
        left_out=tree.left_out,
        said=tree.said(),
    )
