"""Arrays out of a pickle that is not trusted: numpy's own building blocks are let through, all else is refused."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy._core import multiarray, numeric

from pmf_lightning.errors import UserError

MOST_BYTES = 2**31


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, which old pickles call for the bytes of an array; other codecs are refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


class _Array:
    """Stands in for numpy's array in a pickle, which names it as the kind of array to make."""


def _empty_array(kind: type, shape: tuple, code: Any) -> np.ndarray:
    """Stand in for numpy's way to begin an array, which its numbers then fill; one of a size of its own is refused."""
    if kind is not _Array or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"an array begins with the shape {shape!r:.40}")
    return multiarray._reconstruct(np.ndarray, (0,), b"b")


def _dtype(*said: Any) -> np.dtype:
    """Stand in for numpy's types of numbers: one of Python objects, or with parts, is refused."""
    dtype = np.dtype(said[0], copy=True)  # a state is set next, and not that of numpy's own object
    if dtype.hasobject or dtype.fields is not None or dtype.itemsize > 1024:
        raise pickle.UnpicklingError(f"an array of {dtype}")
    return dtype


def _scalar(dtype: Any, content: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a number without bytes")
    return multiarray.scalar(dtype, content)


# What pickles of plain containers and numpy arrays name, by numpy 1 (core) and 2 (_core), by pickle protocols 0 to 5.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _text_to_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle._Unpickler):
    """An unpickler that knows a handful of names and no others, so that no code of the file is run.

    That in Python: the one in C takes as much memory as a number in the file tells it to.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")

    def load_build(self) -> None:
        """Fill an array or a type of numbers; nothing else has a state of its own to be set."""
        if not isinstance(self.stack[-2], np.ndarray | np.dtype):
            raise pickle.UnpicklingError("it sets what is no array")
        super().load_build()

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def load_arrays(path: Path) -> Any:
    """Return what a .pkl of plain containers, numbers, words and numpy arrays holds; UserError for any other."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()  # bytes in memory end where the file does
    except Exception as error:  # a foreign file makes pickle raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"reference={path}: cannot be read as a pickle of arrays ({reason}); "
            "give the file as it was published, or a .npz"
        ) from error
