"""The class of each image by another rule than its folder: none, nested folders, a json beside it, a file of labels."""

import csv
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pmf_lightning.data.images.files import Files, FolderFiles
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.utils.bounded_files import parse_json, read_text
from pmf_lightning.utils.errors import UserError

RULES = "auto, none, nested, json:<key> or file:<path>"
EDM = "dataset.json"  # labels of EDM's dataset_tool, next to its images
NO_LABEL = "an image without a label"
WORDNET = re.compile(r"(n[0-9]{8})\b.*")  # of Kaggle's LOC_val_solution.csv, followed by boxes
DEVKIT = "meta.mat"  # of ImageNet's development kit: names of the classes by their numbers
MOST_CAPTIONS = 100  # texts of which most are different are captions, if there are more than this

Named = tuple[dict[str, str], list[LeftOut]]  # name of an image -> name of its class; images without one


def check_rule(rule: object, option: str) -> None:
    """Raise UserError for an unknown rule of labels."""
    known = rule in ("auto", "none", "nested")
    if not known and not (isinstance(rule, str) and re.fullmatch(r"(json|file):.+", rule)):
        raise UserError(f"{option}={rule}: set it to {RULES}")


def classes_of(rule: str, option: str, files: Files, images: Sequence[str]) -> Named:
    """Return the name of the class of each of ``images`` by ``rule``: nested, json:<key> or file:<path>.

    Raises UserError, naming ``option``, if no image gets a class.
    """
    kind, _, value = rule.partition(":")
    named = {name: found for name in images if (found := name.rpartition("/")[0])}
    without = "an image outside the class folders"
    if kind == "json":
        named, without = _by_json(files, images, value, f"{option}={rule}"), f"{NO_LABEL} ({value} of its .json)"
    elif kind == "file":
        named, without = _by_file(Path(value).expanduser(), images, f"{option}={rule}"), f"{NO_LABEL} in {value}"
    return named, [LeftOut(name, without) for name in images if name not in named]


def edm_labels(files: Files, option: str) -> Mapping[str, str] | None:
    """Return the class of each image that a dataset.json of EDM's dataset_tool lists, {} if it has no labels.

    None if there is no such file. Raises UserError, naming ``option``, for a damaged one.
    """
    where = f"{option}={files.root}: its {EDM}"
    try:
        text = files.text(EDM)
        found = None if text is None else parse_json(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read ({error}); get or make it again") from error
    if not isinstance(found, dict) or "labels" not in found:
        return None
    pairs = found["labels"] or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where} holds no list of [name, class number]; get or make it again")
    named = {}
    for name, number in pairs:
        if type(number) is not int or number < 0:
            raise UserError(f"{where} labels {name} as {number!r:.40}, not by a class number of 0 or more; correct it")
        named[str(name)] = str(number)
    return named


def class_name(value: Any) -> str | None:
    """Return a label of a JSON file as the name of a class; None for lists, fractions and missing values."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return " ".join(str(value).split())
    return None


def value_of(content: Any, key: str) -> Any:
    """Return the value of ``key`` in a JSON object, of ``a.b`` in the object at a; None if it is missing."""
    for part in [key] if isinstance(content, Mapping) and key in content else key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def refuse_captions(classes: Sequence[str], option: str) -> None:
    """Raise UserError if the names of the classes of all images are captions: most of them occur once."""
    different = len(set(classes))
    if different > max(MOST_CAPTIONS, len(classes) // 2):
        raise UserError(
            f"{option}: {different:,} different values for {len(classes):,} images are captions or numbers, no "
            "classes; choose another key, or none"
        )


def no_such_key(option: str, key: str, example: Mapping[str, Any] | None) -> UserError:
    """Return the error for a key that no image has; ``example`` is the JSON object of one image."""
    has = f"; a .json has the keys {', '.join(map(str, list(example)[:12]))}" if example else "; no image has a .json"
    return UserError(f"{option}: no image has a class by the key {key}{has}")


def _by_json(files: Files, images: Sequence[str], key: str, option: str) -> dict[str, str]:
    named, example = {}, None
    for name in images:
        content = _json_beside(files, f"{name.rpartition('.')[0]}.json")
        example = example or content
        if (found := class_name(value_of(content, key))) is not None:
            named[name] = found
    if not named:
        raise no_such_key(option, key, example)
    refuse_captions(list(named.values()), option)
    return named


def _json_beside(files: Files, name: str) -> Mapping[str, Any] | None:
    """Return the JSON object in a file; None if there is none."""
    try:
        if isinstance(files, FolderFiles):
            status = (files.root / name).stat()
            return _json_file(files.root / name, status.st_size, status.st_mtime_ns)
        text = files.text(name)
        content = None if text is None else parse_json(text)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@lru_cache(maxsize=2**16)  # the number of classes is asked for several times
def _json_file(path: Path, size: int, changed: int) -> Mapping[str, Any] | None:
    content = parse_json(read_text(path))
    return content if isinstance(content, dict) else None


def _by_file(path: Path, images: Sequence[str], option: str) -> dict[str, str]:
    """Return classes by a file of labels: lines "name class", CSV, a JSON object, or a class per line."""
    try:
        text = read_text(path)
        rows = _of_json(text) if path.suffix.lower() == ".json" else _of_lines(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: the labels cannot be read ({error}); give a text, CSV or JSON file") from error
    if all(len(row) == 1 for row in rows):
        return _in_order([row[0] for row in rows], images, _devkit(path), option)
    wanted = {row[0]: row[1] for row in rows if len(row) > 1}
    for spelling in (str, _base, _stem):
        listed = {spelling(name): found for name, found in wanted.items()}
        if named := {name: listed[spelling(name)] for name in images if spelling(name) in listed}:
            return named
    raise UserError(
        f"{option}: it names none of the {len(images):,} images, first {rows[0][0]!r:.60}; give their names"
    )


def _in_order(classes: list[str], images: Sequence[str], names: Mapping[str, str], option: str) -> dict[str, str]:
    if len(classes) != len(images):
        raise UserError(
            f"{option}: {len(classes):,} classes without names of images, for {len(images):,} images; give one for "
            "each, in the order of their names"
        )
    return {image: names.get(found, found) for image, found in zip(images, classes, strict=True)}


def _of_json(text: str) -> list[list[str]]:
    content = parse_json(text)
    content = content.get("labels", content) if isinstance(content, dict) else content
    pairs = list(content.items()) if isinstance(content, dict) else content
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(isinstance(one, list | tuple) and len(one) == 2 for one in pairs)
    ):
        raise ValueError("it is no object, or list, of name and class")
    rows = [[str(name), class_name(value)] for name, value in pairs]
    if bad := [name for name, value in rows if value is None]:
        raise ValueError(f"the class of {bad[0]} is no name and no number")
    return rows


def _of_lines(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    delimiter = next((one for one in "\t," if all(one in line for line in lines[:10])), None)
    if delimiter:
        rows = [[part.strip() for part in row] for row in csv.reader(lines, delimiter=delimiter)]
    else:
        rows = [line.rsplit(None, 1) for line in lines]
    return [[row[0], WORDNET.sub(r"\1", row[1])] if len(row) > 1 else row for row in rows]


def _devkit(path: Path) -> Mapping[str, str]:
    """Return WordNet's names by the class numbers of ImageNet's development kit; {} without its meta.mat."""
    meta = path.parent / DEVKIT
    if not meta.is_file():
        return {}
    try:
        from scipy.io import loadmat  # of scikit-learn, needed for this file alone

        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {str(int(one["ILSVRC2012_ID"])): str(one["WNID"]) for one in synsets}
    except Exception as error:  # of a damaged file, any
        raise UserError(f"{meta}: cannot be read ({type(error).__name__}); get it again, or remove it") from error


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    base = _base(name)
    return base.rpartition(".")[0] or base
