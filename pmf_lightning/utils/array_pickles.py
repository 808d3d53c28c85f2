"""Read pickles of numpy arrays and plain containers without executing code."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy._core import multiarray, numeric

MOST_PICKLE_BYTES = 2**31


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """Safe replacement of _codecs.encode, which old pickles call for the bytes of an array; latin1 only."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


class _Array:
    """Placeholder for numpy.ndarray, which a pickle names as the type of an array."""


def _empty_array(kind: type, shape: tuple, code: Any) -> np.ndarray:
    """Safe replacement of numpy's _reconstruct: an empty array to be filled; another shape than (0,) is refused."""
    if kind is not _Array or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"an array begins with the shape {shape!r:.40}")
    return multiarray._reconstruct(np.ndarray, (0,), b"b")


def _dtype(*arguments: Any) -> np.dtype:
    """Safe replacement of numpy.dtype: types of Python objects or with fields are refused."""
    dtype = np.dtype(arguments[0], copy=True)  # a copy, because the pickle sets its state next
    if dtype.hasobject or dtype.fields is not None or dtype.itemsize > 1024:
        raise pickle.UnpicklingError(f"an array of {dtype}")
    return dtype


def _scalar(dtype: Any, content: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a number without bytes")
    return multiarray.scalar(dtype, content)


# Names in pickles of plain containers and numpy arrays, for numpy 1 (core) and 2 (_core) and pickle protocols 0 to 5.
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
    """Unpickler that resolves only the names in ``_ALLOWED``, so that no code in the file is run.

    It extends Python's unpickler, because the C version allocates as much memory as a number in the file states.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong to an array")

    def load_build(self) -> None:
        """Set the state of an array or a dtype; other objects are refused."""
        if not isinstance(self.stack[-2], np.ndarray | np.dtype):
            raise pickle.UnpicklingError("it sets the state of something that is not an array")
        super().load_build()

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def read_array_pickle(path: Path, encoding: str = "ASCII") -> Any:
    """Return the content of a .pkl of plain containers, numbers, strings and numpy arrays; ValueError for others.

    ``encoding`` is that of the strings of Python 2, which wrote arrays as "latin1".
    """
    try:
        if path.stat().st_size > MOST_PICKLE_BYTES:
            raise ValueError(f"it is longer than {MOST_PICKLE_BYTES:,} bytes")
        return _ArraysOnly(io.BytesIO(path.read_bytes()), encoding=encoding).load()  # reads stay in memory
    except Exception as error:  # pickle may raise any error for a foreign file
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
