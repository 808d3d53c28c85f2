"""Read features of real images from files: a folder of make_stats, or the statistics that FD-loss publishes.

A folder of make_stats has ``reference.json`` and, for each encoder, an .npz of moments and perhaps one of a Nystrom
reference and one of rows. FD-loss's files are .npz with the names of ``PUBLISHED``, or one pickle of all of them. No
content of a file is executed.
"""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmf_lightning.encoders.base import Encoder
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.objectives.discrepancies.real_features import RealFeatures
from pmf_lightning.utils.array_pickles import read_array_pickle
from pmf_lightning.utils.bounded_files import Npz, open_npz, read_json
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.moments import MOST_BYTES, checked_moments

INDEX, FORMAT = "reference.json", "pmf_lightning battery reference 1"
MOST_ROW_BYTES = 2**35  # of a bank
KINDS = {"moments": "", "nystrom": "_nystrom", "rows": "_bank"}  # what a file holds -> the ending of its name
_REMEDY = {"moments": "", "nystrom": " nystrom=4096", "rows": " bank=16384"}
# Names of FD-loss's files of ImageNet at 256 pixels (scripts/compute_ref_stats.sh), by encoder.
PUBLISHED = {
    "inception": "guided_diffusion_stats",
    "convnext": "convnext_in256_t224_stats",
    "mae": "vit_large_patch16_224_mae_in256_t224_stats",
    "mae_patches": "vit_large_patch16_224_mae_in256_t224_stats",
    "dinov2": "vit_large_patch14_dinov2_lvd142m_in256_t256_stats",
    "siglip2": "vit_so400m_patch16_siglip_256_v2_webli_in256_t224_stats",
    "clip": "vit_large_patch14_clip_224_openai_in256_t256_stats",
}
PUBLISHED_IMAGES = 1_281_167  # the training split of ImageNet
_SIDES = (256, 512)  # FD-loss compares generators of 512 pixels with these statistics too


def read_references(
    path: str | Path, members: Mapping[str, Encoder], resolution: int, needs: Collection[str]
) -> dict[str, RealFeatures]:
    """Return the real features of each of ``members`` from a folder, or from FD-loss's pickle.

    ``needs`` are kinds of ``KINDS`` that must be there; "nystrom" may be replaced by rows. Others are read too if they
    are there. ``resolution`` is that of the images that are compared. Raises UserError for a missing or damaged file,
    an encoder without reference, and a reference of other features or images.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        read = _OwnFiles if (path / INDEX).is_file() else _PublishedFolder
    elif path.is_file():
        read = _PublishedPickle
    else:
        raise UserError(
            f"battery.reference={path}: no such folder or file; make one with {_command('moments')}, or set "
            "battery.reference=data"
        )
    files = read(path, resolution)
    return {name: files.features(name, member, needs) for name, member in members.items()}


def _command(*kinds: str) -> str:
    return "make_stats battery=... out=..." + "".join(_REMEDY[kind] for kind in kinds)


class _Files:
    """Base class of the three layouts; ``parts`` returns arrays by kind."""

    def __init__(self, path: Path, resolution: int):
        self.path, self.resolution = path, resolution

    def parts(self, name: str, member: Encoder) -> dict[str, Any]:
        """Return arguments of ``RealFeatures`` for an encoder; UserError if it has no reference here."""
        raise NotImplementedError

    def error(self, text: str) -> UserError:
        """Return an error with the option and the path in front."""
        return UserError(f"battery.reference={self.path}: {text}")

    def missing(self, name: str, known: Collection[str]) -> UserError:
        """Return the error for an encoder without reference."""
        listed = ", ".join(sorted(known)) or "none"
        return self.error(
            f"no reference for the encoder {name} (there are: {listed}); make it with {_command('moments')}, or leave "
            "the encoder out"
        )

    def features(self, name: str, member: Encoder, needs: Collection[str]) -> RealFeatures:
        """Return the checked features of one encoder."""
        parts = self.parts(name, member)
        found = RealFeatures(name, **parts)
        width = getattr(member, "width", None)
        if width is not None and found.width != width:
            raise self.error(
                f"{found.width} features of {name}, the encoder makes {width}; give the statistics of the same encoder"
            )
        if lacking := found.lacks(needs):
            what = " and ".join({"rows": "rows of features", "nystrom": "Nystrom reference"}.get(x, x) for x in lacking)
            raise self.error(f"no {what} of {name}, needed here; make it with {_command(*lacking)}")
        return found

    def moments(self, arrays: Mapping[str, Any], keys: tuple[str, str], where: str) -> dict[str, Tensor]:
        """Return checked "mu" and "sigma" from arrays with these ``keys``."""
        if absent := [key for key in keys if key not in arrays]:
            raise self.error(f"{where} holds {', '.join(sorted(arrays)) or 'nothing'}, not {absent[0]}; get it again")
        try:
            return dict(zip(("mu", "sigma"), checked_moments(*(arrays[key] for key in keys)), strict=True))
        except ValueError as error:
            raise self.error(f"{where}: {error}") from error

    def arrays(self, file: Path, most: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the arrays of an .npz named in ``most``, each of at most so many bytes; those absent are left out."""
        if not zipfile.is_zipfile(file):
            raise self.error(f"{file.name} cannot be read as .npz: it is not one, or is truncated; get it again")
        try:
            with open_npz(file) as opened:
                return _read(opened, most)
        except (OSError, ValueError) as error:
            raise self.error(f"{file.name} cannot be read as .npz ({error}); get it again") from error


def _read(opened: Npz, most: Mapping[str, int]) -> dict[str, np.ndarray]:
    return {name: opened.read(name, count) for name, count in most.items() if name in opened.names}


class _OwnFiles(_Files):
    """A folder of make_stats."""

    def __init__(self, path: Path, resolution: int):
        super().__init__(path, resolution)
        try:
            self.index = read_json(path / INDEX)
            if self.index["format"] != FORMAT:
                raise ValueError(f"format {self.index['format']!r:.60}")
            self.encoders, side = dict(self.index["encoders"]), self.index["resolution"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.error(f"{INDEX} cannot be read ({type(error).__name__}: {error}); make it again") from error
        if side != resolution:
            raise self.error(
                f"statistics of images of {side} pixels, these have {resolution}; make them again with data.resolution="
                f"{resolution}"
            )

    def parts(self, name: str, member: Encoder) -> dict[str, Any]:
        """Return the moments, and what else there is."""
        if name not in self.encoders:
            raise self.missing(name, self.encoders)
        theirs, ours = self.encoders[name].get("fingerprint"), member.fingerprint()
        if theirs != ours:
            raise self.error(
                f"{name}: made with the features {theirs}, the encoder is {ours}; choose the encoder (or its weights) "
                f"it was made with, or make it again with {_command('moments')}"
            )
        holds = self.encoders[name].get("holds", ())
        stored = {kind: self.path / f"{name}{ending}.npz" for kind, ending in KINDS.items() if kind in holds}
        for kind, file in stored.items():
            if not file.is_file():
                raise self.error(f"{file.name} is missing; make it again with {_command(kind)}")
        if "moments" not in stored:
            raise self.missing(name, [])
        numbers = self.arrays(stored["moments"], {"mu": MOST_BYTES, "sigma": MOST_BYTES})
        found = {"count": int(self.index["n"]), **self.moments(numbers, ("mu", "sigma"), stored["moments"].name)}
        if "nystrom" in stored:
            found |= {"nystrom": self._nystrom(stored["nystrom"]), "nystrom_scale": self.index.get("bandwidth_scale")}
        return found | (self._bank(stored["rows"]) if "rows" in stored else {})

    def _nystrom(self, file: Path) -> MMDReference:
        keys = ("landmarks", "alpha", "bandwidth", "k_rr")
        arrays = self.arrays(file, dict.fromkeys(keys, MOST_BYTES))
        try:
            state = {key: torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in keys}
            if not all(bool(value.isfinite().all()) for value in state.values()):
                raise ValueError("numbers that are not finite")
            return MMDReference.from_state(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise self.error(f"{file.name} is no Nystrom reference ({error}); make it again") from error

    def _bank(self, file: Path) -> dict[str, Tensor]:
        arrays = self.arrays(file, {"features": MOST_ROW_BYTES, "labels": MOST_BYTES})
        rows, labels = arrays.get("features"), arrays.get("labels")
        bad = rows is None or rows.dtype.kind != "f" or rows.ndim != 2 or not np.isfinite(rows).all()
        if bad or labels is None or labels.dtype.kind != "i" or labels.shape != rows.shape[:1]:
            raise self.error(f"{file.name} holds no rows of finite features with a label each; make it again")
        return {
            "rows": torch.from_numpy(rows.astype(np.float32)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }


class _Published(_Files):
    """Statistics of FD-loss, of ImageNet at 256 pixels."""

    def __init__(self, path: Path, resolution: int):
        super().__init__(path, resolution)
        if resolution not in _SIDES:
            raise self.error(f"FD-loss's statistics are of images of 256 pixels, these have {resolution}")

    def parts(self, name: str, member: Encoder) -> dict[str, Any]:
        """Return the moments; those of the mean of the patch tokens for an encoder with that pooling."""
        stem = PUBLISHED.get(name)
        arrays = None if stem is None else self.file(f"{stem}.npz")
        if arrays is None:
            raise self.missing(name, [key for key, one in PUBLISHED.items() if self.holds(f"{one}.npz")])
        keys = ("avg_mu", "avg_sigma") if getattr(member, "pool", None) == "patches" else ("mu", "sigma")
        return {"count": PUBLISHED_IMAGES, **self.moments(arrays, keys, f"{stem}.npz")}

    def file(self, name: str) -> Mapping[str, Any] | None:
        """Return the arrays of a file, None if there is none."""
        raise NotImplementedError

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        raise NotImplementedError


class _PublishedFolder(_Published):
    def file(self, name: str) -> Mapping[str, Any] | None:
        keys = ("mu", "sigma", "avg_mu", "avg_sigma")
        return self.arrays(self.path / name, dict.fromkeys(keys, MOST_BYTES)) if self.holds(name) else None

    def holds(self, name: str) -> bool:
        return (self.path / name).is_file()


class _PublishedPickle(_Published):
    def __init__(self, path: Path, resolution: int):
        super().__init__(path, resolution)
        try:
            found = read_array_pickle(path)
        except ValueError as error:
            raise self.error(
                f"cannot be read as a pickle of arrays ({error}); give FD-loss's file as it was published, or a folder"
            ) from error
        if not isinstance(found, Mapping):
            raise self.error(f"holds a {type(found).__name__}, not arrays by file name; give FD-loss's file")
        self.files = {f"{str(name).removesuffix('.npz')}.npz": value for name, value in found.items()}

    def file(self, name: str) -> Mapping[str, Any] | None:
        found = self.files.get(name)
        return found if isinstance(found, Mapping) else None

    def holds(self, name: str) -> bool:
        return name in self.files
