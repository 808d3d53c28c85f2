"""Find and open the tables of a data set: parquet files, folders of save_to_disk, or sets of the Hugging Face hub."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pmf_lightning.data.images.class_folders import SPLIT
from pmf_lightning.data.sources.hf.parts import ArrowPart, ParquetPart, Part
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.errors import UserError, some_of, suggestions

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
NUMBERED = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")  # train-00000-of-00012.parquet; older ones have a digest
SPELT = {"training": "train", "trn": "train", "testing": "test", "tst": "test"}  # names of splits that others stand for
INSTALL = 'pip install "pmf_lightning[hf]"'


class OptionNames(NamedTuple):
    """How the user of a command types the options of a set in tables, for error messages."""

    kind: str  # the option that chooses this kind of data
    root: str  # before the name of the set
    prefix: str  # of the options split, subset, image_column and label_column
    folder: str  # the option that chooses a folder of images instead


DATA_HF = OptionNames(kind="data=hf", root="data.root=", prefix="data.", folder="data=folder")


@dataclass(frozen=True)
class OpenTables:
    """The tables of one split, in their order.

    Args:
        where: the folder, or the name on the hub.
        parts: the open tables.
        features: the description of each column by the library datasets; {} if the files have none.
        states: texts that change with the files.
        options: the names of the options in error messages.
    """

    where: Path
    parts: Sequence[Part]
    features: Mapping[str, Any]
    states: Sequence[str]
    options: OptionNames = DATA_HF

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.parts[0].schema.names

    def column_type(self, name: str) -> Any:
        """Return the pyarrow type of a column."""
        return self.parts[0].schema.field(name).type


def package(name: str, kind: str = DATA_HF.kind) -> Any:
    """Import a package of the extra hf; UserError without it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{kind}: the package {name.split('.')[0]} is not installed; {INSTALL}") from error


@lru_cache(maxsize=8)
def open_tables(root: str | None, subset: str | None, split: str, options: OptionNames = DATA_HF) -> OpenTables:
    """Open the split ``split`` of a folder or a set of the hub; raises UserError if it cannot be found or read.

    ``options`` are the names of these options in error messages.
    """
    if root is None:
        hint = "give the name of a set on the hub (owner/set), or a folder of parquet files"
        raise UserError(f"{options.root}null: {hint}")
    package("pyarrow", options.kind)
    path = Path(root).expanduser()
    if path.exists():
        tables = _local(path, root, subset, split, options)
    elif HUB_NAME.fullmatch(root):
        tables = _of_the_hub(root, subset, split, options)
    else:
        raise UserError(f"{options.root}{root}: there is no such folder, and it is no name of the hub (owner/set)")
    if not any(part.rows for part in tables.parts):
        raise UserError(f"{options.prefix}split={split}: it has no rows in {root}; name another split, or get it again")
    return tables


def _local(path: Path, root: str, subset: str | None, split: str, options: OptionNames) -> OpenTables:
    if subset is not None:
        path = path / subset
        if not path.is_dir():
            raise UserError(f"{options.prefix}subset={subset}: there is no such folder in {root}")
    known = local_splits(path)
    if not known:
        raise UserError(
            f"{options.root}{root}: it holds no parquet files, and save_to_disk did not write it; a folder of "
            f"images is {options.folder}"
        )
    if split not in known:
        raise UserError(f"{options.prefix}split={split}: {root} has no such split; {suggestions(split, known)}")
    files = known[split]
    _refuse_subsets(path, root, split, files, options)
    kind = ParquetPart if files[0].suffix == ".parquet" else ArrowPart
    parts = [_opened(file, kind) for file in files]
    if other := [file.name for file, part in zip(files, parts, strict=True) if part.schema != parts[0].schema]:
        raise UserError(f"{options.root}{root}: {some_of(other)} has other columns than {files[0].name}")
    states = [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return OpenTables(path, parts, _features(parts[0], files[0].parent), states, options)


def _refuse_subsets(path: Path, root: str, split: str, files: list[Path], options: OptionNames) -> None:
    """Raise UserError if several folders have files of the split, which are different subsets of a set."""
    folders = {_folder_of_split(file.relative_to(path), split) for file in files} - {None}
    if len(folders) > 1:
        names = [os.path.join(os.path.relpath(path / one, Path(root).expanduser()), "") for one in sorted(folders)]
        raise UserError(
            f"{options.prefix}split={split}: {root} has it in several folders, {some_of(names)}; set "
            f"{options.prefix}subset={names[-1].rstrip('/')}, or bring the files into one folder"
        )


def _opened(file: Path, kind: type[Part]) -> Part:
    try:
        return kind.open(file)
    except Exception as error:  # pyarrow raises many exceptions for damaged files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} is damaged, or of another format ({reason}): get or make it again") from error


def local_splits(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split below a folder, or of one parquet file."""
    if path.is_file():
        return {_split_of(Path(path.name)): [path]}
    if (path / "dataset_dict.json").is_file():
        folders = {name: path / name for name in _listed(path / "dataset_dict.json", "splits")}
    elif (path / "state.json").is_file():
        folders = {_listed(path / "state.json", "_split") or "train": path}
    else:
        found = defaultdict(list)
        for file in sorted(path.rglob("*.parquet")):
            found[_split_of(file.relative_to(path))].append(file)
        return dict(found)
    files = {name: _listed(folder / "state.json", "_data_files") for name, folder in folders.items()}
    return {name: [folders[name] / Path(one["filename"]).name for one in files[name]] for name in folders}


def _listed(path: Path, key: str) -> Any:
    try:
        return read_json(path)[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: save the data set again") from error


def _split_of(file: Path) -> str:
    found = map(_split_in, (file.stem, *reversed(file.parent.parts)))
    return next((split for split in found if split), "train")


def _split_in(name: str) -> str | None:
    """Return the split that a word in the name of a file or folder is; None if no word is one."""
    if numbered := NUMBERED.fullmatch(name):
        return numbered[1]
    found = next(filter(None, map(SPLIT.fullmatch, re.split(r"[^a-zA-Z]+", name))), None)
    return found and SPELT.get(word := found[1].lower(), word)


def _folder_of_split(file: Path, split: str) -> Path | None:
    """Return the folder that holds the outermost part of a path that names the split; None if no part does."""
    parts = zip(reversed(file.parents), (*file.parent.parts, file.stem), strict=False)
    return next((folder for folder, part in parts if _split_in(part) == split), None)


def _features(part: Part, folder: Path) -> Mapping[str, Any]:
    """Return the descriptions of columns, from the metadata of the file or the description next to it."""
    stored = (part.schema.metadata or {}).get(b"huggingface")
    try:
        about = read_json(folder / "dataset_info.json") if stored is None else json.loads(stored)["info"]
        return about["features"] if isinstance(about["features"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _of_the_hub(root: str, subset: str | None, split: str, options: OptionNames) -> OpenTables:
    """Load a set of the hub, in full, by the library datasets; it stays in that library's cache."""
    datasets = package("datasets", options.kind)
    try:
        found = datasets.load_dataset(root, subset, split=split, streaming=False)
    except Exception as error:  # of the library and of the network
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{options.root}{root} {options.prefix}split={split}: it cannot be loaded ({reason}); check the names "
            "and the network, and for sets that need permission sign in with hf auth login"
        ) from error
    part = ArrowPart(found.data.table)
    return OpenTables(Path(root), [part], found.features.to_dict(), [root, str(found._fingerprint)], options)
