"""Labelled images of a folder or a zip: classes, their order, and the files that are skipped."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path

from pmf_lightning.data.images.files import Files, FolderFiles, ZipFiles, open_files
from pmf_lightning.data.images.kinds import is_hidden, is_image
from pmf_lightning.data.images.labels import EDM, check_rule, classes_of, edm_labels
from pmf_lightning.data.images.listing import LeftOut, Listing, describe_extensions, describe_skipped, printable
from pmf_lightning.utils.counted import counted
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
    """Images of ``files``: image i is the file ``names[i]`` of class ``class_names[labels[i]]``."""

    files: Files
    classes: Classes
    names: list[str]
    labels: list[int]
    left_out: list[LeftOut]

    @property
    def root(self) -> Path:
        """Return the folder, or the zip, of the images."""
        return self.files.root

    @property
    def class_names(self) -> list[str]:
        """Return the name of every class, in the order of the labels."""
        return self.classes.names

    def summary(self) -> list[str]:
        """Return a few lines that describe the images, classes and skipped files."""
        classes = describe_classes(self.class_names)
        images = counted(len(self.names), "image")
        lines = [f"{images} of {classes} in {printable(str(self.root))}{describe_extensions(self.names)}"]
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
    return f"{counted(len(names), 'class', 'classes')} ({printable(', '.join(some))})"


def count_class_folders(root: str | None, label: str = "auto") -> int:
    """Return the number of classes in ``root`` by the rule ``label``; raises UserError as ``image_tree`` does."""
    if label == "none" and root is not None:
        return 1
    files = _opened(root, "data.root")
    if label == "auto" and isinstance(files, FolderFiles) and not (files.root / EDM).is_file():
        return len(find_classes(root).names)
    return len(image_tree(root, "data.root", label, "data.label").class_names)


def find_classes(root: str | None, option: str = "data.root") -> Classes:
    """Return the classes of the folder ``root`` from the names of its folders, without hidden ones.

    Raises UserError, naming ``option``, if ``root`` is None or not a folder, if it has neither folders nor images, or
    if its folders are the splits of a dataset (train, val, test).
    """
    path = _opened(root, option).root
    names = _folders(path, option)
    if not names:
        if any(os.path.isfile(one) and is_image(one.name) and not is_hidden(one.name) for one in path.iterdir()):
            return Classes([path.resolve().name or "images"], "the folder holds no class folders")
        raise UserError(f"{option}={root} holds no images and no folders: {_remedy(path, root, option)}")
    subfolders, stems = (lambda name: _subfolders(path / name)), (lambda name: _stems(path / name))
    return _arranged(path, names, subfolders, stems, option)


def image_tree(
    root: str | None, option: str = "data.root", label: str = "auto", label_option: str = "data.label"
) -> ImageTree:
    """List the images of all classes by reading names only, and the files that ``label`` names.

    ``label`` determines the class of an image: "auto", by a dataset.json or else by its folder; for others see
    ``labels.RULES``. Raises UserError as ``find_classes`` does, and for a class folder without images.
    """
    check_rule(label, label_option)
    files = _opened(root, option)
    listed = None if label == "auto" else files.listing()
    if listed is not None:
        return _by_rule(files, listed, label, option, label_option)
    if (numbers := edm_labels(files, option)) is not None:
        return _by_edm(files, numbers, option)
    return _by_folders(files, root, option)


def _opened(root: str | None, option: str) -> Files:
    if root is None:
        raise UserError(f"data=folder needs images: set {option} to a folder that holds one folder per class")
    return open_files(root, option)


def _by_folders(files: Files, root: str, option: str) -> ImageTree:
    """Return the images with the first folders of their names as classes."""
    if isinstance(files, ZipFiles):
        found = files.listing()
        if not any("/" in name for name in found.images):
            return _one_class(files, found, "the zip holds no class folders", option)
        classes = _classes_in_zip(files, found, option)
    else:
        classes = find_classes(root, option)
        found = files.listing()
    if classes.undivided:
        return ImageTree(files, classes, found.images, [0] * len(found.images), found.left_out)
    label = {name: number for number, name in enumerate(classes.names)}
    outside = [LeftOut(name, NO_CLASS) for name in found.images if "/" not in name]
    rows = [(label[name.partition("/")[0]], name) for name in found.images if "/" in name]
    rows.sort(key=lambda row: row[0])  # stable: sorted by name within a class
    filled = {one for one, _ in rows}
    if empty := [name for name in classes.names if label[name] not in filled]:
        raise UserError(_no_image(files.root / empty[0], found.left_out, empty[0]))
    return ImageTree(files, classes, [name for _, name in rows], [one for one, _ in rows], outside + found.left_out)


def _by_edm(files: Files, numbers: Mapping[str, str], option: str) -> ImageTree:
    """Return the images with the labels of a dataset.json, or as one class if it has none."""
    found = files.listing()
    if not numbers:
        return _one_class(files, found, f"its {EDM} has no labels", option)
    gone = [LeftOut(name, f"in {EDM}, but no image is there") for name in sorted(numbers.keys() - set(found.images))]
    without = [LeftOut(name, f"an image without a label in {EDM}") for name in found.images if name not in numbers]
    named = {name: numbers[name] for name in found.images if name in numbers}
    if not named:
        raise UserError(
            f"{option}={files.root}: its {EDM} labels none of its {len(found.images):,} images; get it again"
        )
    return _labelled(files, named, without + gone + found.left_out)


def _by_rule(files: Files, found: Listing, label: str, option: str, label_option: str) -> ImageTree:
    if label == "none" or not found.images:
        return _one_class(files, found, f"{label_option}=none", option)
    named, without = classes_of(label, label_option, files, found.images)
    if not named:
        return _one_class(files, found, "no folder holds images", option)
    return _labelled(files, named, without + found.left_out)


def _one_class(files: Files, found: Listing, why: str, option: str) -> ImageTree:
    if not found.images:
        skipped = f" ({describe_skipped(found.left_out)})" if found.left_out else ""
        raise UserError(f"{option}={files.root} holds no image{skipped}: give a folder or a zip of images")
    return ImageTree(files, Classes([_name_of(files)], why), found.images, [0] * len(found.images), found.left_out)


def _labelled(files: Files, named: Mapping[str, str], left_out: list[LeftOut]) -> ImageTree:
    names = in_order(list(set(named.values())))
    label = {name: number for number, name in enumerate(names)}
    rows = sorted(((label[found], image) for image, found in named.items()), key=lambda row: row[0])
    return ImageTree(files, Classes(names), [image for _, image in rows], [one for one, _ in rows], left_out)


def _name_of(files: Files) -> str:
    """Return the name of the only class: that of the folder or zip."""
    name = files.root.resolve().name
    return (name.removesuffix(".zip") if isinstance(files, ZipFiles) else name) or "images"


def _classes_in_zip(files: ZipFiles, found: Listing, option: str) -> Classes:
    """Return the classes of a zip from the folders in it, as ``find_classes`` does for a folder."""
    inside: dict[str, tuple[dict[str, None], list[str]]] = {}  # first folder -> folders and stems of images in it
    for first, *rest in (name.split("/") for name in found.images):
        if rest:
            folders, stems = inside.setdefault(first, ({}, []))
            folders.update(dict.fromkeys(rest[:1] if len(rest) > 1 else ()))
            stems.extend([os.path.splitext(rest[0])[0]] if len(rest) == 1 else ())
    nothing = {}, []
    subfolders, stems = (lambda name: list(inside.get(name, nothing)[0])), (lambda name: inside[name][1])
    return _arranged(files.root, list(inside), subfolders, stems, option)


def _remedy(path: Path, root: str, option: str) -> str:
    """Return what to do with a folder without folders and images."""
    names = [one.name for one in path.iterdir()]
    if any(".tar" in name.lower() or name.lower().endswith(".tgz") for name in names):
        return f"python -m pmf_lightning.shard in={root} reads its tars"
    if zips := [name for name in names if name.lower().endswith(".zip")]:
        return f"give the zip, {option}={root}/{zips[0]}"
    return f"put the images into it, or those of each class into {root}/<class>/"


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


Look = Callable[[str], list[str]]  # name of a folder -> names of what it holds


def _arranged(path: Path, names: list[str], subfolders: Look, stems: Look, option: str) -> Classes:
    """Return the classes of folders; UserError if these are splits."""
    _refuse_splits(path, names, subfolders, option)
    if _are_parts(names, stems):
        names = in_order(names)
        why = f"the folders {names[0]}, {names[1]}, ... are numbered parts of one set"
        return Classes([path.resolve().name.removesuffix(".zip") or "images"], why)
    return Classes(in_order(names))


def _refuse_splits(path: Path, names: list[str], subfolders: Look, option: str) -> None:
    """Raise UserError if the folders, or the folders inside the first few of them, are the splits of a dataset."""
    if found := _splits(names, subfolders):
        listed, best = ", ".join(sorted(found)), found[0]
        raise UserError(
            f"{option}={path}: its folders {listed} are splits of one set, not classes: set {option}={path / best}"
        )
    for name in in_order(names)[:3]:
        inner = subfolders(name)
        if len(inner) > 1 and (found := _splits(inner, lambda inside, name=name: subfolders(f"{name}/{inside}"))):
            listed = ", ".join(sorted(found))
            remedy = f"set {option}={path / name / found[0]}" if len(names) == 1 else "give a folder of one split"
            raise UserError(f"{option}={path}: {name} holds the splits {listed}, which must not be mixed: {remedy}")


def _splits(names: list[str], subfolders: Look) -> list[str]:
    """Return the names that are splits, the training split first; empty if they are more likely classes.

    "train" is a class next to "bus", and a split next to "val".
    """
    splits = [name for name in names if SPLIT.fullmatch(name)]
    splits.sort(key=lambda name: (not SPLIT.fullmatch(name)[1].lower().startswith("tr"), len(name), name))
    training = [name for name in splits if SPLIT.fullmatch(name)[1].lower().startswith("tr")]
    both = training and len(splits) > len(training)
    only = len(splits) == len(names) and (len(splits) > 1 or (splits and subfolders(splits[0])))
    return splits if both or only else []


def _subfolders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir()]
    except OSError:
        return []


def _stems(path: Path) -> list[str]:
    """Return the names, without extension, of the first images in a folder."""
    try:
        with os.scandir(path) as entries:
            return [os.path.splitext(one.name)[0] for one in islice(entries, 1000) if is_image(one.name)]
    except OSError:
        return []


def _are_parts(names: list[str], stems: Look) -> bool:
    """Return whether folders such as 00000, 01000, 02000 contain the numbered images 0 to 999, 1000 to 1999, ...

    The names of images may begin with "img", as EDM's dataset_tool writes them.
    """
    if len(names) < 2 or not all(name.isascii() and name.isdigit() for name in names):
        return False
    first = sorted(int(name) for name in names)
    step = math.gcd(*(b - a for a, b in pairwise(first)))
    if step >= LEAST_PART and first[0] % step == 0:
        return all(_numbers_within(stems(name), int(name), step) for name in in_order(names)[:4])
    same_width = len({len(name) for name in names}) == 1 and len(names[0]) >= 5
    return same_width and any(
        all(_numbers_within(stems(name), int(name) * size, size) for name in in_order(names)[:4])
        for size in (1000, 10_000)
    )


def _numbers_within(stems: list[str], start: int, size: int) -> bool:
    """Return whether the first names of images are numbers from ``start`` to ``start + size - 1``."""
    numbers = [stem.removeprefix("img") for stem in stems]
    return bool(numbers) and all(
        number.isascii() and number.isdigit() and start <= int(number) < start + size for number in numbers
    )
