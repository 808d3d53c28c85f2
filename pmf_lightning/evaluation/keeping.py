"""Generated images kept for third-party scorers: PNG files by number, or one .npz; written by all ranks at once."""

import shutil
import time
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pmf_lightning.cache import atomic_write
from pmf_lightning.errors import UserError
from pmf_lightning.evaluation.ranks import from_main, together

KINDS = ("none", "png", "npz")
Levels = UInt8[Tensor, "b c h w"]


class Kept:
    """What is kept of generated images: the first ones for a picture and, as ``kind`` says, all of them on disk.

    "png" writes ``out/images/<number>.png``, "npz" ``out/images.npz`` (arr_0: uint8 NHWC, arr_1: labels). Ranks write
    apart, so ``out`` must be one folder for all of them. ``kind`` is one of ``KINDS``. Raises UserError where images of
    before lie there.
    """

    def __init__(self, kind: str, out: Path, n: int, shown: int) -> None:
        self.kind, self.out, self.n, self.shown = kind, out, n, shown
        self.first_images: Levels | None = None  # on rank 0, whose chunk is the first
        self.latest = time.perf_counter()  # when the last images of this rank came
        self._folder = out / ("images" if kind == "png" else ".images.parts")
        if kind != "none":
            from_main(self._make_room)

    @property
    def path(self) -> Path | None:
        """Where the images lie in the end."""
        return {"png": self._folder, "npz": self.out / "images.npz"}.get(self.kind)

    def __call__(self, images: Levels, labels: Int64[Tensor, " b"], first: int) -> None:
        """Keep the images number ``first``, ``first + 1``, ..."""
        self.latest = time.perf_counter()
        if first == 0:
            self.first_images = images[: self.shown].clone()
        arrays = images.permute(0, 2, 3, 1).numpy()
        if self.kind == "png":
            for number, array in enumerate(arrays, first):
                Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(
                    self._folder / f"{number:0{_digits(self.n)}d}.png"
                )
        elif self.kind == "npz":
            np.savez(self._folder / f"{first:012d}.npz", arr_0=arrays, arr_1=labels.numpy())

    def finish(self) -> None:
        """Put the parts of an .npz together, on rank 0 when all are written; all ranks call it."""
        together(lambda: None)
        if self.kind == "npz":
            from_main(self._put_together)

    def _put_together(self) -> None:
        parts = sorted(self._folder.glob("*.npz"))
        with atomic_write(self.out / "images.npz") as draft, zipfile.ZipFile(draft, "w") as archive:
            for name in ("arr_0", "arr_1"):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    _join(file, parts, name)
        shutil.rmtree(self._folder)

    def _make_room(self) -> None:
        if self.kind == "npz" and self._folder.is_dir():
            shutil.rmtree(self._folder)  # of an evaluation that was killed
        if self.kind == "png" and self._folder.is_dir() and any(self._folder.iterdir()):
            raise UserError(f"out={self.out}: {self._folder} holds images already; set another out, or remove them")
        self._folder.mkdir(parents=True, exist_ok=True)


def _join(file: BufferedIOBase, parts: Sequence[Path], name: str) -> None:
    """Write one .npy of the arrays ``name`` of all parts, one after the other: they need not fit into memory."""
    shapes, dtype = [], None
    for part in parts:
        with np.load(part) as arrays:
            shapes.append(arrays[name].shape)
            dtype = arrays[name].dtype
    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        with np.load(part) as arrays:
            file.write(np.ascontiguousarray(arrays[name]).tobytes())


def _digits(n: int) -> int:
    """Return the width of file names that sort as their numbers do."""
    return max(6, len(str(n - 1)))
