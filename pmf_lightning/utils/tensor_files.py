"""Read torch.save files without executing code, with limits on their sizes."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_MOST_DEPTH = 20  # of dictionaries and lists in a file


def load_tensors(path: Path | str, mmap: bool = False) -> Any:
    """Load a torch.save file onto the CPU; with ``mmap`` numbers are read when they are used.

    Only plain data and tensors are read: no pickled code is run. Raises ValueError for compressed members, which
    torch.save never writes, and for tensors larger than their storage. For a foreign file torch may raise any other
    error.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_members(path)
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    _check_tensors(found, Path(path).stat().st_size)
    return found


@contextmanager
def at_most_weights(stored: int) -> Iterator[None]:
    """Raise ValueError once far more weights are created than are ``stored``: a billion blocks would take days."""
    made = count()

    def one_more(module: nn.Module, name: str, value: Any) -> None:
        if next(made) >= 2 * stored + 1000:  # a few missing weights are reported later
            raise ValueError("its configuration describes a network with far more weights than the file has")

    hook = register_module_parameter_registration_hook(one_more)
    try:
        yield
    finally:
        hook.remove()


def _check_members(path: Path | str) -> None:
    length = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > length:
                raise ValueError(f"{member.filename} is compressed, or longer than the file: torch did not write it")


def _check_tensors(found: Any, length: int) -> None:
    """Raise ValueError if the tensors in nested dictionaries and lists need far more memory than the file has bytes."""
    waiting, seen, total = [(found, 0)], set(), 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta:
                raise ValueError(f"a tensor of {list(value.shape)} without plain numbers")
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {list(value.shape)} is larger than what is stored of it")
            total += value.nbytes
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen and depth < _MOST_DEPTH:
            seen.add(id(value))
            waiting += [(one, depth + 1) for one in (value.values() if isinstance(value, Mapping) else value)]
    if total > 16 * length + 2**20:
        raise ValueError(f"its tensors take {total:,} bytes, the file has {length:,}")
