"""Real images for precision and recall, for protocols that store them in a separate file from the moments."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pmf_lightning.evaluation.references import MOST_IMAGE_BYTES, read_about
from pmf_lightning.utils.bounded_files import open_npz
from pmf_lightning.utils.cache import file_sha256
from pmf_lightning.utils.errors import UserError

OPTION = "precision_recall_reference"


@dataclass(frozen=True)
class RealImages:
    """Features [m, F] of real images (from a file of ``make_stats``), or the uint8 images [m, 3, H, W]; never both.

    ``about`` and ``file`` are as in ``Reference``.
    """

    features: Float[Tensor, "m f"] | None = None
    images: UInt8[Tensor, "m 3 h w"] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    file: Mapping[str, str] = field(default_factory=dict)


def load_real_images(path: str | Path, most: int) -> RealImages:
    """Read at most ``most`` images (``arr_0``) or features (``features``) of an .npz; UserError for another file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{OPTION}={path}: no such file; give an .npz of images (arr_0), or one of make_stats")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{OPTION}={path}: cannot be read as .npz; get or make it again")
    try:
        with open_npz(path) as arrays:
            names = arrays.names
            about = read_about(arrays.text("about", "{}"), OPTION, path)
            name = next((name for name in ("features", "arr_0") if name in names), None)
            array = None if name is None else arrays.read(name, MOST_IMAGE_BYTES, rows=most)
    except (OSError, ValueError) as error:
        raise UserError(f"{OPTION}={path}: cannot be read as .npz ({type(error).__name__}: {error})") from error
    if array is None:
        found = ", ".join(sorted(names)[:6]) or "nothing"
        raise UserError(f"{OPTION}={path}: holds {found}; images are called arr_0, features of make_stats features")
    file = {"path": str(path), "sha256": file_sha256(path)}
    if name == "arr_0":
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise UserError(f"{OPTION}={path}: arr_0 is {array.dtype} {array.shape}, not uint8 [n, H, W, 3]")
        return RealImages(images=torch.from_numpy(array).permute(0, 3, 1, 2), about=about, file=file)
    if array.dtype.kind != "f" or array.ndim != 2 or not np.isfinite(array).all():
        raise UserError(f"{OPTION}={path}: features are {array.dtype} {array.shape}, not finite floats [n, features]")
    return RealImages(torch.from_numpy(array.astype(np.float32)), about=about, file=file)
