"""Arrays out of a pickle that is not trusted: numpy's own building blocks are let through, all else is refused."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from pmf_lightning.errors import UserError


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, which old pickles call for the bytes of an array; other codecs are refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


# What pickles of plain containers and numpy arrays name, by numpy 1 (core) and 2 (_core), by pickle protocols 0 to 5.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _text_to_bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): multiarray.scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows a handful of names and no others, so that no code of the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def load_arrays(path: Path) -> Any:
    """Return what a .pkl of plain containers, numbers, words and numpy arrays holds; UserError for any other."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except Exception as error:  # a foreign file makes pickle raise nearly anything
        raise UserError(
            f"reference={path}: cannot be read as a pickle of arrays ({type(error).__name__}: {error}); "
            "give the file as it was published, or a .npz"
        ) from error
