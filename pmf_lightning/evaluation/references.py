"""Read statistics of real images in the three published file formats, without running code."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from numpy._core import multiarray, numeric
from torch import Tensor

from pmf_lightning.encoders.base import file_sha256
from pmf_lightning.evaluation.moments import Gaussian
from pmf_lightning.utils.bounded_files import Npz, open_npz, parse_json
from pmf_lightning.utils.errors import UserError

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


def load_arrays(path: Path) -> Any:
    """Return the content of a .pkl of plain containers, numbers, strings and numpy arrays; UserError for others."""
    try:
        if path.stat().st_size > MOST_PICKLE_BYTES:
            raise ValueError(f"it is longer than {MOST_PICKLE_BYTES:,} bytes")
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()  # in memory, reads cannot exceed the file
    except Exception as error:  # pickle may raise any error for a foreign file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"reference={path}: cannot be read as a pickle of arrays ({reason}); "
            "give the file as it was published, or a .npz"
        ) from error


# Naming of mean and covariance: the .npz of ADM and JiT, the .npz of the JAX codes of pMF and iMF, EDM2's .pkl.
DIALECTS = ("mu_sigma", "ref_mu_sigma", "edm2")

_NPZ = {"mu_sigma": ("mu", "sigma"), "ref_mu_sigma": ("ref_mu", "ref_sigma")}

EDM2_NAMES = {"inception": "fid", "dinov2": "fd_dinov2"}  # extractor -> its name in a .pkl

# Limits for an array of numbers (8192 features), and for the images that are read (10,000 of 360 pixels).
MOST_BYTES, MOST_IMAGE_BYTES = 2**29, 2**32

SYMMETRY = 1e-6  # largest asymmetry of a covariance, relative to its largest entry


@dataclass(frozen=True)
class Reference:
    """Moments of the features of real images.

    Args:
        mu, sigma: mean [F] and covariance [F, F] in float64.
        n: number of images; None if the file does not state it.
        features: features [m, F] of some of the images, for KID, precision and recall, or None.
        images: uint8 [m, 3, H, W], which ADM's files hold instead of features, otherwise None.
        about: metadata in files of ``make_stats``: data, resolution, classes, crop, extractor.
        file: "path", "sha256" and "dialect" of the file.
    """

    mu: Float64[Tensor, " f"]
    sigma: Float64[Tensor, "f f"]
    n: int | None = None
    features: Float[Tensor, "m f"] | None = None
    images: UInt8[Tensor, "m 3 h w"] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def gaussian(self) -> Gaussian:
        """The moments as a Gaussian, for distances to them."""
        return Gaussian(self.mu, self.sigma)


def load_reference(path: str | Path, extractor: str, most_images: int = 10_000) -> Reference:
    """Read and check a file of statistics: a .npz of either kind or EDM2's .pkl.

    ``extractor`` is the name of the features, because a .pkl may hold several kinds. At most ``most_images`` images
    (``arr_0``) are read. Raises UserError, naming file and remedy.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"reference={path}: no such file; make one with pmf_lightning.make_stats, or see protocol=")
    read = _read_pickle if path.suffix in (".pkl", ".pickle") else _read_npz
    parts, dialect = read(path, extractor, most_images)
    mu, sigma = _moments(parts.pop("mu"), parts.pop("sigma"), path)
    file = {"path": str(path), "sha256": file_sha256(path), "dialect": dialect}
    features = parts.get("features")
    if features is not None and features.shape != (len(features), len(mu)):
        raise UserError(
            f"reference={path}: its features are {tuple(features.shape)}, its mean has {len(mu)} numbers; make it again"
        )
    return Reference(mu, sigma, file=file, **parts)


def _read_npz(path: Path, extractor: str, most_images: int) -> tuple[dict[str, Any], str]:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"reference={path}: cannot be read as .npz: it is not one, or is truncated; get or make it again"
        )
    try:
        with open_npz(path) as arrays:
            names = arrays.names
            for dialect, keys in _NPZ.items():
                if set(keys) <= names:
                    moments = dict(zip(("mu", "sigma"), (arrays.read(key, MOST_BYTES) for key in keys), strict=True))
                    return moments | _npz_extras(arrays, path, most_images), dialect
    except (OSError, ValueError) as error:
        raise UserError(f"reference={path}: cannot be read as .npz ({type(error).__name__}: {error})") from error
    stored = ", ".join(sorted(names)[:6]) or "nothing"
    if "arr_0" in names:
        raise UserError(f"reference={path}: has images and no moments; turn it into a file with make_stats images=")
    raise UserError(f"reference={path}: holds {stored}; moments are called mu and sigma, or ref_mu and ref_sigma")


def _npz_extras(arrays: Npz, path: Path, most_images: int) -> dict[str, Any]:
    names = arrays.names
    extras: dict[str, Any] = {"about": read_about(arrays.text("about", "{}"), "reference", path)}
    extras["n"] = extras["about"].get("n")
    if "features" in names:
        features = arrays.read("features", MOST_BYTES)
        if features.dtype.kind != "f" or not np.isfinite(features).all():
            raise UserError(f"reference={path}: its features are {features.dtype}, or not finite; make it again")
        extras["features"] = torch.from_numpy(features.astype(np.float32))
    elif "arr_0" in names:
        images = arrays.read("arr_0", MOST_IMAGE_BYTES, rows=most_images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"reference={path}: arr_0 is {images.dtype} {images.shape}, not uint8 [n, H, W, 3]")
        extras["images"] = torch.from_numpy(images).permute(0, 3, 1, 2)
    return extras


def _read_pickle(path: Path, extractor: str, most_images: int) -> tuple[dict[str, Any], str]:
    found = load_arrays(path)
    key = EDM2_NAMES.get(extractor, extractor)
    stored = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(stored, Mapping) or not {"mu", "sigma"} <= stored.keys():
        names = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"reference={path}: holds {names}; {{'{key}': {{'mu': ..., 'sigma': ...}}}} is needed")
    about = found.get("about", {})
    about = dict(about) if isinstance(about, Mapping) else {}
    return {"mu": stored["mu"], "sigma": stored["sigma"], "about": about, "n": about.get("n")}, "edm2"


def read_about(text: Any, option: str, path: Path) -> dict[str, Any]:
    """Parse a file's metadata, JSON in its entry ``about``; UserError, naming the ``option``, for invalid JSON."""
    try:
        about = parse_json(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{option}={path}: its metadata is not JSON; make it again") from error
    if not isinstance(about, dict):
        raise UserError(f"{option}={path}: its metadata is not a JSON object; make it again")
    return about


def _moments(mu: Any, sigma: Any, path: Path) -> tuple[Float64[Tensor, " f"], Float64[Tensor, "f f"]]:
    """Return checked mean and covariance in float64; UserError if they are invalid."""
    mu, sigma = np.asarray(mu), np.asarray(sigma)
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise UserError(f"reference={path}: mean and covariance are {mu.dtype} and {sigma.dtype}, not floats")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"reference={path}: mean {mu.shape} and covariance {sigma.shape} do not match")
    if sigma.size * 8 > MOST_BYTES or not len(mu):
        raise UserError(f"reference={path}: its mean has {len(mu)} numbers, outside the supported range")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"reference={path}: some of its numbers are not finite; get or make it again")
    if np.abs(sigma - sigma.T).max() > SYMMETRY * np.abs(sigma).max():
        raise UserError(f"reference={path}: its covariance is not symmetric; get or make it again")
    if not np.trace(sigma) > 0 or (np.diag(sigma) < 0).any():
        raise UserError(f"reference={path}: its covariance has no positive trace; get or make it again")
    return torch.from_numpy(mu), torch.from_numpy((sigma + sigma.T) / 2)
