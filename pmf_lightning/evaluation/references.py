"""Read and write statistics of real images; the three published file formats are read without running code."""

import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from pmf_lightning.evaluation.moments import FeatureStatistics, Gaussian
from pmf_lightning.utils.array_pickles import read_array_pickle
from pmf_lightning.utils.bounded_files import Npz, open_npz, parse_json
from pmf_lightning.utils.cache import atomic_write, cache_root, digest, file_sha256, sole_writer
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.moments import MOST_BYTES, checked_moments

log = logging.getLogger(__name__)

# Naming of mean and covariance: the .npz of ADM and JiT, the .npz of the JAX codes of pMF and iMF, EDM2's .pkl.
DIALECTS = ("mu_sigma", "ref_mu_sigma", "edm2")

_NPZ = {"mu_sigma": ("mu", "sigma"), "ref_mu_sigma": ("ref_mu", "ref_sigma")}

EDM2_NAMES = {"inception": "fid", "dinov2": "fd_dinov2"}  # extractor -> its name in a .pkl

MOST_IMAGE_BYTES = 2**32  # of the images that are read (10,000 of 360 pixels)


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
    try:
        mu, sigma = checked_moments(parts.pop("mu"), parts.pop("sigma"))
    except ValueError as error:
        raise UserError(f"reference={path}: {error}") from error
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
    try:
        found = read_array_pickle(path)
    except ValueError as error:
        raise UserError(
            f"reference={path}: cannot be read as a pickle of arrays ({error}); give the file as it was published, or "
            "a .npz"
        ) from error
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


def save_npz(reference: Reference, path: Path) -> None:
    """Write mu, sigma, features if there are any, and the metadata ``about``."""
    arrays = {"mu": reference.mu.numpy(), "sigma": reference.sigma.numpy()}
    if reference.features is not None:
        arrays["features"] = reference.features.numpy()
    write_npz(path, arrays | {"about": np.array(json.dumps(dict(reference.about)))})


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a .npz, which appears complete or not at all."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def cached_file(cache_dir: str | None, *key: int | str | None) -> Path:
    """Return the .npz of statistics with this ``key`` in the cache; its folder is created."""
    folder = cache_root(cache_dir) / "statistics"
    folder.mkdir(exist_ok=True)
    return folder / f"{digest(*key)}.npz"


def read_cached(path: Path, extractor: str) -> Reference | None:
    """Return the statistics that are cached in ``path``; None if the file is missing, or damaged, with a warning."""
    if not path.is_file():
        return None
    try:
        return load_reference(path, extractor)
    except UserError:
        log.warning("%s is damaged: measuring the real images again", path)
        return None


def cached_moments(path: Path, extractor: str, measure: Callable[[], FeatureStatistics]) -> FeatureStatistics:
    """Return the moments in ``path`` of features of ``extractor``, measured and stored there if need be.

    One process measures while others wait.
    """
    with sole_writer(path):
        stored = read_cached(path, extractor)
        if stored is not None:
            return FeatureStatistics(stored.n, stored.mu, stored.sigma, None, None)
        measured = measure()
        save_npz(Reference(measured.mu, measured.sigma, about={"n": measured.n, "extractor_name": extractor}), path)
    return measured
