"""The class of each image by another rule than its folder: none, nested folders, a json beside it, a file of labels."""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pmf_lightning.data.images.files import Files, FolderFiles
from pmf_lightning.data.images.listing import LeftOut
from pmf_lightning.utils.bounded_files import parse_json, read_text
from pmf_lightning.utils.errors import UserError, some_of, suggestions

RULES = "auto, none, nested, json:<key> or file:<path>"
EDM = "dataset.json"  # labels of EDM's dataset_tool, next to its images
NO_LABEL = "an image without a label"
WORDNET = re.compile(r"(n[0-9]{8})\b.*")  # of Kaggle's LOC_val_solution.csv, followed by boxes
DEVKIT = "meta.mat"  # of ImageNet's development kit: names of the classes by their numbers
CLASS_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target")  # of a CSV, by its header
MOST_CAPTIONS = 100  # texts of which most are different are captions, if there are more than this

Named = tuple[dict[str, str], list[LeftOut]]  # name of an image -> name of its class; images without one


def check_rule(rule: object, option: str) -> None:
    """Raise UserError for an unknown rule of labels."""
    known = rule in ("auto", "none", "nested")
    if not known and not (isinstance(rule, str) and re.fullmatch(r"(json|file):.+", rule)):
        raise UserError(f"{option}={rule}: set it to {RULES}")


def classes_of(rule: str, option: str, files: Files, images: Sequence[str]) -> Named:
    """Return the name of the class of each of ``images`` by ``rule``.

    It is nested, json:<key>, file:<path> or file:<path>:<column>.
    Raises UserError, naming ``option``, if no image gets a class.
    """
    kind, _, value = rule.partition(":")
    named = {name: found for name in images if (found := name.rpartition("/")[0])}
    without = "an image outside the class folders"
    if kind == "json":
        named, without = _by_json(files, images, value, f"{option}={rule}"), f"{NO_LABEL} ({value} of its .json)"
    elif kind == "file":
        named, without = _by_file(value, files.root, images, f"{option}={rule}"), f"{NO_LABEL} in {value}"
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


def refuse_captions(classes: Sequence[str] | Sequence[int], option: str) -> None:
    """Raise UserError if the classes of all images, names or labels, are captions: most of them occur once."""
    different = len(set(classes))
    if different > max(MOST_CAPTIONS, len(classes) // 2):
        raise UserError(
            f"{option}: {different:,} different values for {len(classes):,} images are captions or numbers, no "
            "classes; choose others, or none"
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


def _by_file(value: str, root: Path, images: Sequence[str], option: str) -> dict[str, str]:
    """Return classes of ``images`` below ``root`` by a file of labels.

    It holds lines "name class", a CSV, a JSON object, or a class per line. ``value`` is its path, or path:column for a
    column of a CSV.
    """
    path, column = _path_and_column(value)
    try:
        text = read_text(path)
        rows = _of_json(text) if path.suffix.lower() == ".json" else _of_lines(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: the labels cannot be read ({error}); give a text, CSV or JSON file") from error
    rows = _two_columns(rows, column, option)
    if all(len(row) == 1 for row in rows):
        return _in_order([row[0] for row in rows], images, _devkit(path), option)
    lines = [(row[0], WORDNET.sub(r"\1", row[1])) for row in rows if len(row) > 1]
    for spelling in (str, _without_extension):
        spelled = [(spelling(name), found) for name, found in lines]
        if named := _by_path({name: spelling(name) for name in images}, root, spelled, option):
            return named
    raise UserError(
        f"{option}: it names none of the {len(images):,} images, first {rows[0][0]!r:.60}; give their names"
    )


def _path_and_column(value: str) -> tuple[Path, str | None]:
    """Split <path>:<column>; the column is None if there is none, or if the whole is a file."""
    path, colon, column = value.rpartition(":")
    if not colon or Path(value).expanduser().is_file() or not Path(path).expanduser().is_file():
        return Path(value).expanduser(), None
    return Path(path).expanduser(), column


def _two_columns(rows: list[list[str]], column: str | None, option: str) -> list[list[str]]:
    """Return name and class of each row; with more than two columns, the header says which one is the class.

    Raises UserError if it does not, or if there is no ``column``.
    """
    header = list(rows[0])
    while len(header) > 1 and not header[-1]:
        header.pop()
    if column is None and len(header) < 3:
        return [row[:2] for row in rows]
    if column is not None and column not in header[1:]:
        raise UserError(f"{option}: it has no column {column} of classes; {suggestions(column, header[1:])}")
    known = [column] if column is not None else [name for name in header[1:] if _plain(name) in CLASS_COLUMNS]
    if len(known) != 1:
        raise UserError(
            f"{option}: it has the columns {some_of(header, 20)}, and which is the class is unknown; name them in its "
            "first line, and append :<column>"
        )
    place = header.index(known[0], 1)
    if not (found := [[row[0], row[place]] for row in rows[1:] if len(row) > place]):
        raise UserError(f"{option}: no line below its header has a {known[0]}; give one for each image")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[- ]", "_", name.lower())


def _by_path(images: Mapping[str, str], root: Path, lines: list[tuple[str, str]], option: str) -> dict[str, str]:
    """Return the class of each image from the line with its path; if no line has one, from that with the longest end.

    ``images`` gives the spelling of each path below ``root``. The end of a path is its last parts, of which the path of
    ``root`` has the first. A line is used only for the images with which it has the longest common end.
    """
    if named := _with_same(str, images, lines, option)[0]:
        return named
    named, left = {}, {name: f"{root.absolute().as_posix()}/{path}" for name, path in images.items()}
    for parts in range(max(path.count("/") for path, _ in lines) + 1, 0, -1):
        end = partial(_end, parts=parts)
        found, used = _with_same(end, left, lines, option)
        named |= found
        left = {name: path for name, path in left.items() if name not in found}
        lines = [line for line in lines if end(line[0]) not in used] if used else lines
        if not left:
            break
    return named


def _end(path: str, parts: int) -> str:
    return "/".join(path.rsplit("/", parts)[-parts:])


def _with_same(
    key: Callable[[str], str], images: Mapping[str, str], lines: list[tuple[str, str]], option: str
) -> tuple[dict[str, str], Collection[str]]:
    """Return the class of each image that has the ``key`` of a line, and those keys; UserError for two classes."""
    keys = {name: key(path) for name, path in images.items()}
    wanted = {end: name for name, end in reversed(keys.items())}
    first: dict[str, tuple[str, str]] = {}
    for path, found in lines:
        if (end := key(path)) not in wanted:
            continue
        other, before = first.setdefault(end, (path, found))
        if found != before:
            raise UserError(
                f"{option}: {wanted[end]} is {before} by its line {other}, and {found} by its line {path}; give each "
                "image once, by its path in the folder of images"
            )
    return {name: first[end][1] for name, end in keys.items() if end in first}, first.keys()


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
        return [[part.strip() for part in row] for row in csv.reader(lines, delimiter=delimiter)]
    return [line.rsplit(None, 1) for line in lines]


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


def _without_extension(path: str) -> str:
    folder, slash, base = path.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
