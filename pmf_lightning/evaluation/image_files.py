"""Image files for evaluation: write generated images as PNG files or .npz, read existing ones."""

import math
import os
import shutil
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pmf_lightning.data.images.decoder import check_background, describe_conversions, levels_of, open_picture
from pmf_lightning.data.images.files import Files, open_files, zip_of
from pmf_lightning.data.images.kinds import is_image
from pmf_lightning.data.images.listing import describe_extensions, describe_skipped, printable
from pmf_lightning.distributed.collectives import on_all_ranks, on_rank_zero, total
from pmf_lightning.utils.bounded_files import open_npz
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

KINDS = ("none", "png", "npz")
PNG, NPZ = "images", "images.npz"  # folder of kind "png", file of kind "npz"

Levels = UInt8[Tensor, "b c h w"]


class ImageSaver:
    """Writer of generated images: it stores the first ones for a picture and, depending on ``kind``, writes all.

    "png" writes ``out/images/<number>.png``, "npz" ``out/images.npz`` (arr_0: uint8 NHWC, arr_1: labels). Every rank
    writes its own files, so ``out`` must be the same folder for all. ``kind`` is one of ``KINDS``. The images take the
    place of earlier ones at the end, in ``finish``.
    """

    def __init__(self, kind: str, out: Path, n: int, shown: int) -> None:
        self.kind, self.out, self.n, self.shown = kind, out, n, shown
        self.first_images: Levels | None = None  # on rank 0 only, which has the first chunk
        self.latest = time.perf_counter()  # time of this rank's last images
        self._folder = out / ".images.parts"
        if kind != "none":
            on_rank_zero(self._prepare_folder)

    @property
    def path(self) -> Path | None:
        """Final path of the images."""
        return {"png": self.out / PNG, "npz": self.out / NPZ}.get(self.kind)

    def __call__(self, images: Levels, labels: Int64[Tensor, " b"], first: int) -> None:
        """Save the images number ``first``, ``first + 1``, ..."""
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
        """Put the images at ``path`` on rank 0 once all ranks have written. All ranks must call it."""
        on_all_ranks(lambda: None)
        if self.kind != "none":
            on_rank_zero({"png": self._move_pngs, "npz": self._write_npz}[self.kind])

    def _move_pngs(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self._folder.replace(self.path)

    def _write_npz(self) -> None:
        parts = sorted(self._folder.glob("*.npz"))
        with atomic_write(self.out / NPZ) as draft, zipfile.ZipFile(draft, "w") as archive:
            for name in ("arr_0", "arr_1"):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    _concatenate(file, parts, name)
        shutil.rmtree(self._folder)

    def _prepare_folder(self) -> None:
        if self._folder.is_dir():
            shutil.rmtree(self._folder)  # left by a killed evaluation
        self._folder.mkdir(parents=True)


def _concatenate(file: BufferedIOBase, parts: Sequence[Path], name: str) -> None:
    """Concatenate the arrays ``name`` of all parts into one .npy, part by part: they may exceed the memory."""
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
    """Return the number of digits in file names, so that they sort by number."""
    return max(6, len(str(n - 1)))


MOST_BYTES = 2**28  # per image


class FolderImages:
    """Images below a folder or in a zip, sorted by path, all of one size; ``channels`` is 3 (colour) or 1 (grey).

    ``background`` is the colour behind transparent pixels. ``done`` counts the decoder's conversions of the images read
    so far.
    """

    def __init__(self, files: Files, channels: int, background: str) -> None:
        self.files, self.folder, self.channels, self.background = files, files.root, channels, background
        found = files.listing()
        self.names, self.left_out, self.done = found.images, found.left_out, Counter()
        if not self.names:
            why = f" ({describe_skipped(self.left_out)})" if self.left_out else ""
            raise UserError(f"images={self.folder}: holds no image{why}; give another folder, a zip, or an .npz")
        self.shape = (channels, *self._read(self.names[0])[0].shape[:2])

    def __len__(self) -> int:
        return len(self.names)

    def summary(self) -> list[str]:
        """Return lines that describe the images and the files left out."""
        lines = [f"{counted(len(self), 'image')} in {printable(str(self.folder))}{describe_extensions(self.names)}"]
        return lines + ([describe_skipped(self.left_out)] if self.left_out else [])

    def conversions(self) -> list[str]:
        """Return a line on the decoder's conversions of the images read by all ranks. All ranks must call it."""
        done = total(self.done)
        return [describe_conversions(done)] if done else []

    def __call__(self, first: int, end: int) -> Levels:
        """Return images number ``first`` to ``end - 1``; UserError for a bad file, or one of another size."""
        names = self.names[first:end]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = list(pool.map(self._read, names))
        for name, (image, done) in zip(names, read, strict=True):
            self.done.update(done)
            if image.shape[:2] != self.shape[1:]:
                path, first_name = self.folder / name, Path(self.names[0]).name
                raise UserError(f"{path}: {image.shape[:2]} pixels, {first_name} has {self.shape[1:]}")
        return torch.from_numpy(np.stack([image for image, _ in read])).permute(0, 3, 1, 2)

    def _read(self, name: str) -> tuple[UInt8[np.ndarray, "h w c"], tuple[str, ...]]:
        path = self.folder / name
        try:
            picture = open_picture(self.files.read(name), self.channels, self.background)
        except Exception as error:  # Pillow may raise any error for a damaged file
            raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}); remove it") from error
        return levels_of(picture.image), picture.done


class NpzImages:
    """Images ``arr_0`` of an .npz, uint8 [n, H, W, 1 or 3], read in chunks without loading the complete array."""

    def __init__(self, path: Path, channels: int) -> None:
        self.path, self.channels = path, channels
        try:
            with open_npz(path) as arrays:
                header = arrays.header("arr_0")
            self._member = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 - open as long as the object exists
        except (OSError, ValueError) as error:
            raise UserError(f"images={path}: holds no readable arr_0 ({type(error).__name__}: {error})") from error
        shape, fortran, dtype, self._start = header.shape, header.fortran, header.dtype, header.start
        if dtype != np.uint8 or fortran or len(shape) != 4 or shape[-1] not in (1, 3):
            raise UserError(f"images={path}: arr_0 is {dtype} {shape}, not uint8 [n, H, W, 1 or 3] in C order")
        if shape[-1] == 3 and channels == 1:
            raise UserError(f"images={path}: arr_0 has 3 channels, the features are of grey images; give grey ones")
        if not 0 < math.prod(shape[1:]) <= MOST_BYTES:
            raise UserError(f"images={path}: arr_0 is {dtype} {shape}, images that are empty or too large")
        self._stored, self.shape = shape, (channels, *shape[1:3])

    def __len__(self) -> int:
        return self._stored[0]

    def summary(self) -> list[str]:
        """Return a line that describes the images."""
        return [f"{counted(len(self), 'image')} in {self.path}"]

    def conversions(self) -> list[str]:
        """Return no lines: the images are not converted."""
        return []

    def __call__(self, first: int, end: int) -> Levels:
        """Return images number ``first`` to ``end - 1``; UserError if the file is damaged or too short."""
        size = int(np.prod(self._stored[1:]))
        try:
            self._seek(self._start + first * size)
            data = self._member.read((end - first) * size)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"images={self.path}: damaged ({error}); get or write it again") from error
        if len(data) != (end - first) * size:
            raise UserError(f"images={self.path}: ends within image {first + len(data) // size}; write it again")
        images = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(end - first, *self._stored[1:])
        return images.permute(0, 3, 1, 2).expand(-1, self.channels, -1, -1)

    def _seek(self, place: int) -> None:
        """Move to a byte of the array, forwards by reading: since Python 3.12 seeking in a zip skips its checksum."""
        while (ahead := place - self._member.tell()) > 0 and self._member.read(min(ahead, 2**24)):
            pass
        if ahead < 0:
            self._member.seek(place)


def open_images(path: str | Path, channels: int, background: str = "white") -> FolderImages | NpzImages:
    """Open square images: a folder, a zip of them, or an .npz with arr_0; UserError for anything else."""
    check_background(background, "background")
    images = _opened(Path(path).expanduser(), channels, background)
    _, height, width = images.shape
    if height != width:
        raise UserError(
            f"images={path}: they have {height} x {width} pixels (height x width), and scores are of square images; "
            "crop them"
        )
    return images


def _opened(path: Path, channels: int, background: str) -> FolderImages | NpzImages:
    if path.is_dir() or zip_of(path) is not None:
        return FolderImages(open_files(str(path), "images"), channels, background)
    if not path.is_file():
        raise UserError(
            f"images={path}: no such file or folder; give a folder or a zip of images, or an .npz with arr_0"
        )
    if is_image(path.name):
        raise UserError(f"images={path}: that is one image; give the folder that holds the images")
    return NpzImages(path, channels)
