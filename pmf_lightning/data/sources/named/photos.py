"""Sets of photographs that torchvision knows by name, as image files of any size: Flowers-102 and CelebA."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pmf_lightning.data.sources.named.known import KnownSet, readable
from pmf_lightning.utils.errors import UserError, suggestions

MOST_MAT = 2**24  # bytes; those of Flowers-102 have 16 kB


class Photos(NamedTuple):
    """Image files below ``root``, with their labels."""

    root: Path
    names: list[str]
    labels: list[int]


class PhotoSet(KnownSet):
    """A set whose images are files."""

    def listed(self, folder: Path, split: str, label: str | None) -> Photos:
        """Return the files of a split; UserError for a damaged list. ``label`` is an option of CelebA."""
        raise NotImplementedError


class FlowersSet(PhotoSet):
    """Flowers-102: jpg/image_00001.jpg and so on, with splits and labels in MATLAB's files."""

    def listed(self, folder: Path, split: str, label: str | None) -> Photos:
        """Return the files of a split; UserError for a damaged list."""
        key = {"train": "trnid", "val": "valid", "test": "tstid"}[split]
        labels, sets = folder / "imagelabels.mat", folder / "setid.mat"
        numbers = readable(labels, lambda: _integers(labels, "labels"))
        chosen = readable(sets, lambda: _integers(sets, key))
        if chosen.min() < 1 or chosen.max() > len(numbers):
            raise UserError(f"{sets} is damaged (it names image {chosen.max()} of {len(numbers)}): get it again")
        names = [f"image_{number:05d}.jpg" for number in chosen.tolist()]
        return Photos(folder / "jpg", names, (numbers[chosen - 1] - 1).tolist())


def _integers(path: Path, key: str) -> np.ndarray:
    """Return an array of integers of a .mat file; ValueError if there is none."""
    from scipy.io import loadmat  # imported here, because it takes long

    if path.stat().st_size > MOST_MAT:
        raise ValueError(f"it is longer than {MOST_MAT:,} bytes")
    try:
        found = np.ravel(loadmat(path, variable_names=[key])[key])
    except OSError:
        raise
    except Exception as error:  # scipy raises many exceptions for damaged files
        raise ValueError(f"no .mat file with {key}: {' '.join(str(error).split())[:80]}") from error
    if found.dtype.kind not in "iu" or not len(found):
        raise ValueError(f"{key} holds no integers")
    return found.astype(np.int64)


class CelebASet(PhotoSet):
    """CelebA, aligned and cropped. It has no classes; one of its 40 attributes can be the label, 0 or 1."""

    def listed(self, folder: Path, split: str, label: str | None) -> Photos:
        """Return the files of a split; UserError for a damaged list or an unknown attribute."""
        number = {"train": "0", "valid": "1", "test": "2"}[split]
        lists = folder / "list_eval_partition.txt"
        rows = readable(lists, lambda: _rows(lists))
        names = [row[0] for row in rows if row[1:] == [number]]
        if not names or any("/" in name or "\\" in name for name in names):
            raise UserError(f"{lists} is damaged (its rows are no file names of split {number}): get it again")
        if label is None:
            return Photos(folder / "img_align_celeba", names, [0] * len(names))
        attributes = folder / "list_attr_celeba.txt"
        column = self._attributes(folder).index(label) + 1
        values = {row[0]: row[column] for row in readable(attributes, lambda: _rows(attributes))[2:] if row[column:]}
        if any(values.get(name) not in ("-1", "1") for name in names):
            raise UserError(f"{attributes} is damaged ({label} is not -1 or 1 for every image): get it again")
        return Photos(folder / "img_align_celeba", names, [int(values[name] == "1") for name in names])

    def class_names(self, folder: Path, label: str | None) -> list[str]:
        """Return the two names for an attribute; UserError if it is unknown."""
        if label is None:
            return ["face"]
        if label not in (known := self._attributes(folder)):
            raise UserError(f"data.label={label}: CelebA has no such attribute; {suggestions(label, known)}")
        return [f"not {label}", label]

    def _attributes(self, folder: Path) -> list[str]:
        path = folder / "list_attr_celeba.txt"

        def header() -> list[str]:
            with path.open(encoding="utf-8") as lines:
                next(lines, "")
                return next(lines, "").split()

        return readable(path, header)


def _rows(path: Path) -> list[list[str]]:
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row]


_FLOWERS_FILES = ("imagelabels.mat", "setid.mat", "jpg")
FLOWERS102 = FlowersSet(
    "Flowers102",
    ("flowers-102",),
    {split: _FLOWERS_FILES for split in ("train", "val", "test")},
    102,
    "the folder flowers-102 of torchvision: jpg/, imagelabels.mat and setid.mat of "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
)
CELEBA = CelebASet(
    "CelebA",
    ("celeba",),
    {split: ("list_eval_partition.txt", "img_align_celeba") for split in ("train", "valid", "test")},
    1,
    "the folder celeba of torchvision: img_align_celeba/ (unpacked), list_eval_partition.txt and list_attr_celeba.txt "
    "of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
)
