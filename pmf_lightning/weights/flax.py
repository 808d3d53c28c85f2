"""Read files of flax.serialization (.msgpack) into flat dictionaries of tensors.

The format is a msgpack map of maps. An array is an extension of type 1 whose bytes are again msgpack: (shape, name of
the dtype, row-major bytes). A numpy scalar is the same with type 3. An array above 2^30 bytes is a map of flat pieces
under "__msgpack_chunked_array__". The files contain no code. This reader follows the format and does not use flax.
"""

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.errors import UserError, some_of

ARRAY, SCALAR = 1, 3  # extension types; 2 is a complex Python number, which weights do not contain

CHUNKED = "__msgpack_chunked_array__"

_MOST_ENTRIES = 64  # of a list: flax's lists are shapes, and memory is allocated for the length that a list claims

_MOST_DEPTH = 100  # of nested names

INSTALL = "pip install 'pmf_lightning[flax-files]'"

_DTYPES = {
    **{f"float{n}": getattr(torch, f"float{n}") for n in (16, 32, 64)},
    **{f"int{n}": getattr(torch, f"int{n}") for n in (8, 16, 32, 64)},
    **{"bfloat16": torch.bfloat16, "uint8": torch.uint8, "bool": torch.bool},
}


def read_msgpack(path: str | Path) -> dict[str, Tensor]:
    """Return the arrays of a file by their nested names joined with "/", in their stored dtype and layout (flax's).

    Numbers outside arrays become scalar tensors. Raises UserError for a missing or foreign file, or for an entry
    (named) whose bytes do not match its shape.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give an ema_params.msgpack, or the folder that holds it")
    tree = _unpack(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a dictionary of weights")
    try:
        return dict(_flat(tree, ""))
    except _BadEntry as error:
        raise UserError(f"{path}: {error}; the file is damaged or no file of flax weights") from error


class _BadEntry(Exception):
    """One entry of a file is invalid; the message names it."""


class _Packed:
    """Bytes of an array that is not decoded yet: its name, needed for errors, is known only while walking the tree."""

    def __init__(self, data: bytes):
        self.data = data


def _msgpack() -> Any:
    try:
        import msgpack  # an optional dependency for these files only
    except ImportError as error:
        raise UserError(f".msgpack files need the package msgpack: {INSTALL}") from error
    return msgpack


def _unpack(path: Path) -> Any:
    msgpack = _msgpack()

    def extension(kind: int, data: bytes) -> Any:
        if kind not in (ARRAY, SCALAR):
            raise ValueError(f"extension type {kind}")
        return _Packed(data)

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return msgpack.unpackb(content, ext_hook=extension, raw=False, max_array_len=_MOST_ENTRIES)
    except Exception as error:  # msgpack raises many kinds of errors for foreign bytes
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path}: cannot be read as a .msgpack of flax ({why})") from error


def _flat(tree: dict, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) and remove each from the tree, so that the weights are never in memory twice."""
    while tree:
        key = next(iter(tree))
        name, value = f"{prefix}{key}", tree.pop(key)
        if isinstance(value, dict) and CHUNKED in value:
            yield name, _joined(value, name)
        elif isinstance(value, dict) and name.count("/") >= _MOST_DEPTH:
            raise _BadEntry(f"{name[:40]} is nested too deeply")
        elif isinstance(value, dict):
            yield from _flat(value, f"{name}/")
        elif isinstance(value, bool | int | float):
            yield name, _number(value, name)
        elif isinstance(value, _Packed):
            yield name, _array(value, name)
        else:
            raise _BadEntry(f"{name} is a {type(value).__name__}, not an array")


def _number(value: int | float, name: str) -> Tensor:
    try:
        return torch.tensor(value)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise _BadEntry(f"{name} is a number of more than 64 bits") from error


def _array(packed: _Packed, name: str) -> Tensor:
    try:
        shape, dtype, data = _msgpack().unpackb(packed.data, raw=True, max_array_len=_MOST_ENTRIES)
        shape, dtype = tuple(int(n) for n in shape), dtype.decode()
    except Exception as error:
        raise _BadEntry(f"{name} is not a flax array ({type(error).__name__})") from error
    if dtype not in _DTYPES:
        raise _BadEntry(f"{name} has the dtype {dtype}; known: {', '.join(sorted(_DTYPES))}")
    wanted = math.prod(shape) * _DTYPES[dtype].itemsize
    if min(shape, default=0) < 0 or len(data) != wanted:
        raise _BadEntry(f"{name} has {len(data)} bytes, its shape {shape} of {dtype} needs {wanted}")
    if not data:
        return torch.empty(shape, dtype=_DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).reshape(shape)


def _joined(pieces: dict, name: str) -> Tensor:
    """Concatenate the pieces of a chunked array."""
    try:
        chunks, shape = ([table[str(i)] for i in range(len(table))] for table in (pieces["chunks"], pieces["shape"]))
        flat = torch.cat([_array(chunk, f"{name}, piece {i}") for i, chunk in enumerate(chunks)])
        return flat.reshape([int(n) for n in shape])
    except _BadEntry:
        raise
    except Exception as error:
        raise _BadEntry(f"{name} cannot be assembled from its chunks ({type(error).__name__})") from error


# (weights, metadata) of a release, and of a run's folder written by older code.
FILES = (("ema_params.msgpack", "metadata.json"), ("ema_model.msgpack", "ema_model.metadata.json"))


def find(path: str | Path) -> tuple[Path, Path]:
    """Return the paths of weights and metadata of ``path``, a file or the folder of a release.

    The metadata need not exist. Raises UserError for a folder without weights.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path, path.with_name(dict(FILES).get(path.name, FILES[0][1]))
    for folder in (path / "params_ema", path):
        for weights, metadata in FILES:
            if (folder / weights).is_file():
                return folder / weights, folder / metadata
    raise UserError(f"{path}: this folder holds no {FILES[0][0]}; give the folder of a release, or the file")


def is_release(path: str | Path) -> bool:
    """Whether ``path`` has the suffix .msgpack, or is a folder with released weights."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path.suffix == ".msgpack"
    return any((folder / weights).is_file() for folder in (path / "params_ema", path) for weights, _ in FILES)


def sizes(path: str | Path, what: str, read: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Apply ``read`` to the model_config in the metadata of the weights at ``path`` and return the result.

    Raises UserError if the metadata are missing or not those of ``what``.
    """
    _, metadata = find(path)
    if not metadata.is_file():
        raise UserError(f"{path}: no metadata.json next to the weights; give the sizes of the network yourself")
    try:
        return read(read_json(metadata)["model_config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{metadata}: no model_config of {what} in it ({type(error).__name__})") from error


def without_root(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a leading "params/" from the names of arrays."""
    return {name.removeprefix("params/"): value for name, value in official.items()}


def check_names(source: str, missing: Iterable[str], unknown: Iterable[str], question: str) -> None:
    """Raise UserError, with ``question`` as the remedy, if names are missing or unknown to the network."""
    for what, names in (("lacks", sorted(missing)), ("has the unknown arrays", sorted(unknown))):
        if names:
            raise UserError(f"{source}: it {what} {some_of(names)}; {question}")
