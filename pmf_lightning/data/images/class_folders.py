"""Labelled images from class folders: classes, their order, and the files that are skipped."""

import math
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path

from pmf_lightning.data.images.kinds import is_hidden, is_image
from pmf_lightning.data.images.listing import LeftOut, describe_extensions, describe_skipped, list_images, printable
from pmf_lightning.utils.errors import UserError

ORDER = "numbers by value, other names by letters"  # order of classes; part of cache keys
NO_CLASS = "an image outside the class folders"
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
SPLIT = re.compile(
    r"(?:(?:images?|imgs?|data)[-_ ]?)?"
    r"(train|training|trn|val|valid|validation|dev|test|testing|tst|eval|holdout)"
    r"(?:[-_ ]?(?:set|data|images?|imgs?|split|[0-9]+))*",
    re.IGNORECASE,
)
LEAST_PART = 10  # smallest number of images of a numbered part of a dataset
MOST_NAMES = 8  # largest number of class names printed


@dataclass(frozen=True)
class Classes:
    """The classes of a folder in the order of their labels.

    ``undivided`` is the reason why all images are one class; None if each class is a folder.
    """

    names: list[str]
    undivided: str | None = None


@dataclass(frozen=True)
class ImageTree:
    """Images below ``root``: image i is the file ``names[i]`` of class ``class_names[labels[i]]``."""

    root: Path
    classes: Classes
    names: list[str]
    labels: list[int]
    left_out: list[LeftOut]

    @property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        return self.classes.names

    def summary(self) -> list[str]:
        """Return a few lines that describe the images, classes and skipped files."""
        classes = describe_classes(self.class_names)
        lines = [
            f"{len(self.names):,} images of {classes} in {printable(str(self.root))}{describe_extensions(self.names)}"
        ]
        if self.classes.undivided:
            lines.append(f"all of them are one class: {self.classes.undivided}")
        return lines + ([describe_skipped(self.left_out)] if self.left_out else [])


def in_order(names: list[str]) -> list[str]:
    """Sort class names by value if all are numbers, else alphabetically."""
    if all(NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (Decimal(name), name))
    return sorted(names)


def describe_classes(names: list[str]) -> str:
    """Return the number of classes with the first and last names, as text."""
    some = names if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1], "...", names[-1]]
    return f"{len(names):,} class{'es' * (len(names) != 1)} ({printable(', '.join(some))})"


def count_class_folders(root: str | None) -> int:
    """Return the number of classes in ``root``; raises UserError as ``find_classes`` does."""
    return len(find_classes(root).names)


def find_classes(root: str | None, option: str = "data.root") -> Classes:
    """Return the classes of ``root`` from the names of its folders, without hidden ones.

    Raises UserError, naming ``option``, if ``root`` is None or not a folder, if it has neither folders nor images, or
    if its folders are the splits of a dataset (train, val, test).
    """
    if root is None:
        raise UserError(f"data=folder needs images: set {option} to a folder that holds one folder per class")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"{option}={root} is not a folder: set it to a folder that holds one folder per class")
    names = _folders(path, option)
    if not names:
        if any(os.path.isfile(one) and is_image(one.name) and not is_hidden(one.name) for one in path.iterdir()):
            return Classes([path.resolve().name or "images"], "the folder holds no class folders")
        tars = any(".tar" in one.name.lower() for one in path.iterdir())
        remedy = (
            f"python -m pmf_lightning.shard in={root} reads its tars"
            if tars
            else f"put the images into {root}/<class>/"
        )
        raise UserError(f"{option}={root} holds no class folder: {remedy}")
    _refuse_splits(path, names, option)
    if _are_parts(path, names):
        names = in_order(names)
        why = f"the folders {names[0]}, {names[1]}, ... are numbered parts of one set"
        return Classes([path.resolve().name or "images"], why)
    return Classes(in_order(names))


def image_tree(root: str | None, option: str = "data.root") -> ImageTree:
    """List the images of all classes by reading names only.

    Raises UserError as ``find_classes`` does, and for a class folder without images.
    """
    classes = find_classes(root, option)
    path = Path(root).expanduser()
    found = list_images(path)
    if classes.undivided:
        return ImageTree(path, classes, found.images, [0] * len(found.images), found.left_out)
    label = {name: number for number, name in enumerate(classes.names)}
    outside = [LeftOut(name, NO_CLASS) for name in found.images if "/" not in name]
    rows = [(label[name.partition("/")[0]], name) for name in found.images if "/" in name]
    rows.sort(key=lambda row: row[0])  # stable: sorted by name within a class
    if empty := [name for name in classes.names if label[name] not in {row[0] for row in rows}]:
        raise UserError(_no_image(path / empty[0], found.left_out, empty[0]))
    return ImageTree(path, classes, [name for _, name in rows], [one for one, _ in rows], outside + found.left_out)


def _no_image(folder: Path, left_out: list[LeftOut], name: str) -> str:
    inside = [one for one in left_out if one.name.partition("/")[0] == name]
    why = f" ({describe_skipped(inside)})" if inside else ""
    return f"class folder {folder} holds no image{why}: fill or remove it"


def _folders(path: Path, option: str) -> list[str]:
    """Return the names of the folders in ``path``, without links to folders already listed."""
    try:
        entries = sorted((one for one in path.iterdir() if not is_hidden(one.name)), key=lambda one: one.name)
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read ({error.strerror}); see its permissions") from error
    entries = [one for one in entries if os.path.isdir(one)]  # also False without permission
    real, links = ([one for one in entries if one.is_symlink() == link] for link in (False, True))
    names = [one.name for one in real]
    seen = {os.path.realpath(one) for one in real}
    for one in links:
        target = os.path.realpath(one)
        around = os.path.join(os.path.realpath(path), "").startswith(os.path.join(target, ""))
        if target not in seen and not around:
            names.append(one.name)
        seen.add(target)
    return names


def _refuse_splits(path: Path, names: list[str], option: str) -> None:
    """Raise UserError if the folders, or the folders inside the first few of them, are the splits of a dataset."""
    if found := _splits(path, names):
        listed, best = ", ".join(sorted(found)), found[0]
        raise UserError(
            f"{option}={path}: its folders {listed} are splits of one set, not classes: set {option}={path / best}"
        )
    for name in in_order(names)[:3]:
        inner = _subfolders(path / name)
        if len(inner) > 1 and (found := _splits(path / name, inner)):
            listed = ", ".join(sorted(found))
            remedy = f"set {option}={path / name / found[0]}" if len(names) == 1 else "give a folder of one split"
            raise UserError(f"{option}={path}: {name} holds the splits {listed}, which must not be mixed: {remedy}")


def _splits(path: Path, names: list[str]) -> list[str]:
    """Return the names that are splits, the training split first; empty if they are more likely classes.

    "train" is a class next to "bus", and a split next to "val".
    """
    splits = [name for name in names if SPLIT.fullmatch(name)]
    splits.sort(key=lambda name: (not SPLIT.fullmatch(name)[1].lower().startswith("tr"), len(name), name))
    training = [name for name in splits if SPLIT.fullmatch(name)[1].lower().startswith("tr")]
    both = training and len(splits) > len(training)
    only = len(splits) == len(names) and (len(splits) > 1 or (splits and _subfolders(path / splits[0])))
    return splits if both or only else []


def _subfolders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir()]
    except OSError:
        return []


def _are_parts(path: Path, names: list[str]) -> bool:
    """Return whether folders such as 00000, 01000, 02000 contain the numbered images 0 to 999, 1000 to 1999, ..."""
    if len(names) < 2 or not all(name.isascii() and name.isdigit() for name in names):
        return False
    first = sorted(int(name) for name in names)
    step = math.gcd(*(b - a for a, b in pairwise(first)))
    if step >= LEAST_PART and first[0] % step == 0:
        return all(_numbers_within(path / name, int(name), step) for name in in_order(names)[:4])
    same_width = len({len(name) for name in names}) == 1 and len(names[0]) >= 5
    return same_width and any(
        all(_numbers_within(path / name, int(name) * size, size) for name in in_order(names)[:4])
        for size in (1000, 10_000)
    )


def _numbers_within(folder: Path, start: int, size: int) -> bool:
    """Return whether the first images of a folder have numbers from ``start`` to ``start + size - 1`` as names."""
    try:
        with os.scandir(folder) as entries:
            stems = [os.path.splitext(one.name)[0] for one in islice(entries, 1000) if is_image(one.name)]
    except OSError:
        return False
    return bool(stems) and all(
        stem.isascii() and stem.isdigit() and start <= int(stem) < start + size for stem in stems
    )
