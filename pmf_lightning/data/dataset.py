"""Protocols and base classes of the data package: labelled images by index, and data sources."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from pmf_lightning.utils.errors import UserError


@runtime_checkable
class ImageDataset(Protocol):
    """Labelled images by index: item i is ``(image, label)``.

    They may be generated, decoded or read on access, so callers must not load all of them at once. An image is uint8
    pixels [C, H, W], or float32 [2, C, h, w]: mean and standard deviation of its raw latents (``DataSource.latents``).
    ``labels`` is int64 [N].
    """

    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images [B, ...], which the caller may modify, and labels [B]; IndexError for invalid indices."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image and its label."""
        ...

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return a list of (image, label), as torch's DataLoader requests it."""
        ...


class BatchDataset(Dataset):
    """Base class of datasets that implement ``batch``; single items and lists are derived from it."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels (see ``ImageDataset``)."""
        raise NotImplementedError

    def first(self, count: int) -> "BatchDataset":
        """Return the first ``count`` images, or all if there are fewer."""
        return _first_rows(self, count)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return a list of items; torch's DataLoader calls this instead of ``__getitem__``."""
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))


class ArrayDataset(BatchDataset):
    """Images and labels in two arrays: item i is ``(image, int)``.

    ``images`` is uint8 [N, C, H, W], or float32 [N, 2, C, h, w] moments of latents, as a tensor or a numpy array. The
    array may be a memory map: only the requested rows are read, and they are copied. ``labels`` is int64 [N].
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n *image"] | UInt8[np.ndarray, "n *image"] | Float32[Tensor, "n *image"],
        labels: Int64[Tensor, " n"],
    ) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[Tensor, "b *image"] | Float32[Tensor, "b *image"], Int64[Tensor, " b"]]:
        """Return images [B, ...] and labels [B] by one gather."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.images, Tensor):
            return self.images[rows], self.labels[rows]
        return torch.from_numpy(self.images[rows.numpy()]), self.labels[rows]


class Rows(BatchDataset):
    """Some rows of ``images``, in the order of ``rows``."""

    def __init__(self, images: ImageDataset, rows: Int64[Tensor, " n"]) -> None:
        self.images, self.rows, self.labels = images, rows, images.labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels (see ``ImageDataset``)."""
        return self.images.batch(self.rows[torch.as_tensor(indices, dtype=torch.int64)].tolist())


def _first_rows(images: ImageDataset, count: int) -> Rows:
    return Rows(images, torch.arange(min(count, len(images))))


def first_images(images: ImageDataset, count: int) -> ImageDataset:
    """Return the first ``count`` of ``images``, or all if there are fewer."""
    return images.first(count) if isinstance(images, BatchDataset) else _first_rows(images, count)


@runtime_checkable
class DataSource(Protocol):
    """A named set of labelled square images with a fixed split, built from ``conf/data``.

    These members are required. ``DataSourceBase`` documents them, and has the optional ones with their defaults.
    """

    name: str
    resolution: int
    channels: int
    classes: int

    train: Callable[[], ImageDataset]
    held_out: Callable[[], ImageDataset]
    fingerprint: Callable[[], str]
    check: Callable[[], None]


def training_images(source: DataSource) -> ImageDataset:
    """Open the training images of ``source``; UserError if there are none."""
    if len(images := source.train()):
        return images
    fraction = getattr(source, "held_out_fraction", 0)
    why = f"data.held_out_fraction={fraction}: it leaves" if fraction else f"data={source.name}: there is"
    raise UserError(f"{why} no image for training; lower the held-out fraction, or give more images per class")


class FirstImages:
    """A data source with the first ``count`` training images of ``source``; all else is that of ``source``."""

    def __init__(self, source: DataSource, count: int) -> None:
        self.source, self.count = source, count
        self.name, self.resolution, self.channels = source.name, source.resolution, source.channels
        self.classes, self.held_out, self.check = source.classes, source.held_out, source.check

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def train(self) -> ImageDataset:
        """Return the first training images."""
        return first_images(self.source.train(), self.count)

    def fingerprint(self) -> str:
        """Return a digest of the images."""
        return f"{self.source.fingerprint()}-first{self.count}"


class DataSourceBase:
    """Defaults of a data source. A subclass is a frozen dataclass whose fields are the keys of ``data`` in conf.

    A subclass has the fields ``name``, ``resolution`` (pixels along a side), ``channels`` and ``classes``, and writes

    - ``train()`` and ``held_out()``: the two splits, each an ``ImageDataset`` (``ArrayDataset`` of two arrays, or a
      subclass of ``BatchDataset``). Images are uint8 [C,H,W]. UserError if there is no such split;
    - ``fingerprint()``: a hex digest, for cache keys, that changes whenever an image or the split may have changed;
      ``utils.cache.digest(...)`` of the settings is enough if these determine the images.

    Attributes, which a subclass overrides by another class attribute or by a property:
        latents: whether images are float32 [2,C,h,w], mean and standard deviation of raw latents. Then ``channels`` and
            ``resolution`` are those of the latents, and the configuration has a ``decoder``.
        class_names: the name of every class, in the order of the labels; None: no names.
        older_class_names: the names in the order of earlier versions, whose runs have no classes.json; None: unknown.
        left_out: the files that are not used, as named tuples that are written to classes.json.
        crop: the rule by which images were cropped to squares, a part of statistics' metadata; "none": not cropped.
        has_held_out: whether ``held_out`` has images, known from the settings, without opening a split.
        costly_to_read: whether reading a batch takes so long that worker processes help; arrays need none.
    """

    latents: ClassVar[bool] = False
    class_names: ClassVar[Sequence[str] | None] = None
    older_class_names: ClassVar[Sequence[str] | None] = None
    left_out: ClassVar[Sequence[Any]] = ()
    crop: ClassVar[str] = "none"
    has_held_out: ClassVar[bool] = True
    costly_to_read: ClassVar[bool] = False

    def check(self) -> None:
        """Raise UserError for invalid settings, without expensive work."""


def check_source(source: Any) -> None:
    """Raise UserError, in one line, for the missing members of a data source."""
    needed = [*DataSource.__annotations__, *(name for name in vars(DataSourceBase) if not name.startswith("_"))]
    there = {*dir(type(source)), *vars(source)}  # a property is not evaluated: it may read files
    if missing := [name for name in needed if name not in there]:
        raise UserError(
            f"data: {type(source).__name__} misses {', '.join(missing)}; derive it from "
            "pmf_lightning.data.dataset.DataSourceBase, which has the defaults"
        )
