"""Cache of decoded image files, as one memory-mapped array on disk."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from rich.progress import track
from torch import Tensor

from pmf_lightning.data.images.decoder import check_damaged
from pmf_lightning.data.transforms import Square, read_square
from pmf_lightning.utils.bounded_files import open_npz, read_json
from pmf_lightning.utils.cache import atomic_write, sole_writer
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

WINDOW = 256  # files decoded ahead of the writer; bounds the memory


@runtime_checkable
class Readable(Protocol):
    """Images by name: files of a folder or a zip, or cells of a table. ``root`` is where messages say they are."""

    root: Path

    def read(self, name: str) -> Path | bytes:
        """Return the path or the bytes of an encoded image."""
        ...


@dataclass(frozen=True)
class DecodeJob:
    """Images to decode, in the order of the cache: names in ``files``, labels [n], split quantiles [n]."""

    files: Readable
    names: list[str]
    labels: Int64[Tensor, " n"]
    quantiles: Float64[Tensor, " n"]
    resolution: int
    channels: int
    background: str

    @property
    def bytes(self) -> int:
        """Size on disk in bytes, if every file is readable."""
        return len(self.names) * self.channels * self.resolution**2


@dataclass(frozen=True)
class Decoded:
    """The readable images, memory-mapped, with labels and quantiles, and a line of text per unreadable image.

    ``done`` counts the conversions of the decoder (constants of decoder.py).
    """

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int64[Tensor, " n"]
    quantiles: Float64[Tensor, " n"]
    unreadable: list[str]
    unreadable_file: Path
    done: dict[str, int]


def cannot_read(root: Path, line: str) -> UserError:
    """Return the error for one line of ``Decoded.unreadable``."""
    name, reason = line.split("\t", 1)
    return UserError(f"cannot read {root / name} ({reason}): remove it or set data.unreadable=skip")


def open_decoded(folder: Path, job: DecodeJob, fail: bool) -> Decoded:
    """Open the cache ``folder``; if it does not exist, decode ``job`` into it first, atomically.

    Raises UserError if the disk is too small, no file is readable or, with ``fail``, at the first unreadable file.
    """
    with sole_writer(folder):
        if not folder.exists():
            with atomic_write(folder) as partial:
                partial.mkdir()
                _decode(partial, folder, job, fail)
    try:
        return _opened(folder, job)
    except Exception as error:  # numpy evaluates headers as Python literals, which raise many exceptions
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{folder} is damaged ({reason}): remove it, and the images are decoded again") from error


def _opened(folder: Path, job: DecodeJob) -> Decoded:
    """Open an existing cache; ValueError if it does not match the ``job`` files."""
    unreadable_file, most = folder / "unreadable.txt", 8 * len(job.names)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    with open_npz(folder / "index.npz") as index:
        labels, quantiles = index.read("labels", most), index.read("quantiles", most)
    shape = (len(images), job.channels, job.resolution, job.resolution)
    if images.dtype != np.uint8 or images.shape != shape or labels.dtype != np.int64 or quantiles.dtype != np.float64:
        raise ValueError("its arrays have other shapes or types than expected")
    if not len(images) or labels.shape != (len(images),) or quantiles.shape != labels.shape:
        raise ValueError("images and labels do not match")
    if labels.min() < 0 or labels.max() > int(job.labels.max()):
        raise ValueError("its labels are out of range")
    return Decoded(
        images=images,
        labels=torch.from_numpy(labels),
        quantiles=torch.from_numpy(quantiles),
        unreadable=unreadable_file.read_text(errors="surrogateescape").splitlines(),
        unreadable_file=unreadable_file,
        done=_done(read_json(folder / "done.json")),
    )


def _done(found: Any) -> dict[str, int]:
    if not isinstance(found, dict) or not all(type(count) is int for count in found.values()):
        raise ValueError("done.json has no counts")
    return found


def _decode(partial: Path, folder: Path, job: DecodeJob, fail: bool) -> None:
    free = shutil.disk_usage(partial).free
    shape = (job.channels, job.resolution, job.resolution)
    print(
        f"decoding {counted(len(job.names), 'image')} to {shape} once: {job.bytes / 2**30:.2f} GiB at {folder}",
        flush=True,
    )
    if job.bytes > 0.98 * free:
        raise UserError(
            f"decoded images need {job.bytes / 2**30:.1f} GiB and {folder.parent} has {free / 2**30:.1f} GiB free: "
            "make room or set data.cache_dir to a larger disk"
        )
    readable, unreadable, done = [], [], Counter()
    with (partial / "images.npy").open("wb") as file:
        _write_header(file, (len(job.names), *shape))
        with closing(track(_read_all(job), "decoding", total=len(job.names))) as images:
            for row, image in enumerate(images):
                if isinstance(image, Exception):
                    unreadable.append(f"{job.names[row]}\t{type(image).__name__}: {image}".replace("\n", " "))
                    if fail:
                        raise cannot_read(job.files.root, unreadable[0])
                else:
                    file.write(image.levels.tobytes())
                    readable.append(row)
                    done.update(image.done)
        if not readable:
            raise UserError(
                f"none of the {len(unreadable)} images in {job.files.root} can be read, first {unreadable[0]!r}"
            )
        file.seek(0)
        _write_header(file, (len(readable), *shape))  # numpy pads headers, so the first dimension may change
    np.savez(partial / "index.npz", labels=job.labels[readable].numpy(), quantiles=job.quantiles[readable].numpy())
    (partial / "done.json").write_text(json.dumps(done) + "\n")
    (partial / "unreadable.txt").write_text("".join(f"{line}\n" for line in unreadable), errors="surrogateescape")


def _read_all(job: DecodeJob) -> Iterator[Square | Exception]:
    """Decode on all cores and yield an image or an exception per file, in order; UserError without memory or access."""

    def read(name: str) -> Square | Exception:
        try:
            return read_square(job.files.read(name), job.resolution, job.channels, job.background)
        except MemoryError as error:  # the file is intact and must not be permanently missing from the cache
            raise UserError(f"no memory to decode {job.files.root / name}: free some, or remove the file") from error
        except Exception as reason:  # Pillow raises many exceptions for damaged files
            check_damaged(reason, job.files.root / name)
            return reason

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(job.names), WINDOW):
            yield from pool.map(read, job.names[start : start + WINDOW])


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
