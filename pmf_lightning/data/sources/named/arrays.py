"""Readers of the sets that torchvision knows as arrays: MNIST's idx files, CIFAR's pickles, STL-10's binary files.

A reader takes paths and returns uint8 images [n,c,h,w] with int64 labels [n]. It raises ValueError, with a short
reason, for a damaged file, and OSError for one that cannot be read. No file runs code.
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from pmf_lightning.utils.array_pickles import read_array_pickle
from pmf_lightning.utils.counted import counted

GZIP = b"\x1f\x8b"
MOST_BYTES = 2**33  # of an unpacked idx file; MNIST's have 47 MB
CIFAR_SIDE, STL_SIDE = 32, 96


class Arrays(NamedTuple):
    """Images and their labels; a label of -1 is unknown."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]


def read_idx_pair(images: Path, labels: Path) -> Arrays:
    """Read the idx files of grey images and their labels (MNIST, Fashion-MNIST)."""
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise ValueError(f"{len(pixels):,} images and {len(numbers):,} labels")
    if pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"its images have {pixels.shape[2]} x {pixels.shape[1]} pixels and are not square")
    return Arrays(pixels[:, None], numbers.astype(np.int64))


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of bytes, plain or packed by gzip; the content decides which, not the name."""
    with path.open("rb") as plain:
        packed = plain.read(2) == GZIP
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) != 4 + 4 * dimensions:
                raise ValueError(f"it is no idx file of bytes in {counted(dimensions, 'dimension')}")
            shape = tuple(np.frombuffer(header, ">i4", offset=4).tolist())
            size = math.prod(shape)
            if min(shape) < 1 or size > MOST_BYTES:
                raise ValueError(f"it states the shape {' x '.join(map(str, shape))}")
            content = file.read(size)  # grows with the file, not with the number that the header states
            if len(content) != size or file.read(1):
                raise ValueError(f"it does not hold the {size:,} bytes that its header states")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"damaged gzip: {error}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar(path: Path) -> Arrays:
    """Read one pickle of CIFAR-10 or CIFAR-100 (fine labels)."""
    found = _pickled(path)
    labels = found.get("labels", found.get("fine_labels"))
    pixels = found.get("data")
    width = 3 * CIFAR_SIDE**2
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (width,):
        raise ValueError(f"it has no uint8 data [n, {width}]")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(one) is int for one in labels):
        raise ValueError(f"it has no list of {len(pixels):,} labels")
    return Arrays(pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE), np.array(labels, np.int64))


def read_cifar_names(path: Path) -> list[str]:
    """Read the class names from batches.meta of CIFAR-10 or meta of CIFAR-100."""
    found = _pickled(path)
    names = found.get("label_names", found.get("fine_label_names"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("it has no class names")
    return names


def _pickled(path: Path) -> Mapping:
    try:
        found = read_array_pickle(path, encoding="latin1")  # as Python 2 wrote it
    except ValueError as error:
        raise ValueError(f"it is no pickle of arrays: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("it is no pickled dictionary")
    return found


def read_stl(images: Path, labels: Path | None) -> Arrays:
    """Read the binary files of STL-10: images by columns, labels from 1; without labels these are -1."""
    pixels, size = np.fromfile(images, np.uint8), 3 * STL_SIDE**2
    if not len(pixels) or len(pixels) % size:
        raise ValueError(f"it holds {len(pixels):,} bytes, not images of {size:,}")
    pixels = pixels.reshape(-1, 3, STL_SIDE, STL_SIDE).transpose(0, 1, 3, 2)
    if labels is None:
        return Arrays(pixels, np.full(len(pixels), -1))
    numbers = np.fromfile(labels, np.uint8).astype(np.int64) - 1
    if len(pixels) != len(numbers):
        raise ValueError(f"{len(pixels):,} images and {len(numbers):,} labels")
    return Arrays(pixels, numbers)
