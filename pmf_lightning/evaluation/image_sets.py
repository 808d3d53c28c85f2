"""Images that exist already: a folder of files, or an .npz with arr_0, as third parties score them."""

import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pmf_lightning.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LEVELS = UInt8[Tensor, "b c h w"]


class FolderImages:
    """The images below a folder in the order of their paths, all of one size; ``channels`` 3 (colour) or 1 (grey)."""

    def __init__(self, folder: Path, channels: int) -> None:
        self.mode = "RGB" if channels == 3 else "L"
        found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
        self.paths = sorted(path for path in found if path.suffix.lower() in ENDINGS and path.name[0] != ".")
        if not self.paths:
            raise UserError(f"images={folder}: holds no image ({', '.join(ENDINGS)}); give another folder, or an .npz")
        self.shape = (channels, *self._read(self.paths[0]).shape[:2])

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, first: int, end: int) -> LEVELS:
        """Return images number ``first`` to ``end - 1``; UserError for a bad file, or one of another size."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self._read, self.paths[first:end]))
        for path, image in zip(self.paths[first:end], images, strict=True):
            if image.shape[:2] != self.shape[1:]:
                raise UserError(f"{path}: {image.shape[:2]} pixels, {self.paths[0].name} has {self.shape[1:]}")
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _read(self, path: Path) -> UInt8[np.ndarray, "h w c"]:
        try:
            with Image.open(path) as image:
                levels = np.asarray(image.convert(self.mode))
        except Exception as error:  # broken files make Pillow raise nearly anything
            raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}); remove it") from error
        return levels.reshape(*levels.shape[:2], -1)


class NpzImages:
    """The images ``arr_0`` of an .npz, uint8 [n, H, W, 1 or 3], read chunk by chunk without loading the others."""

    def __init__(self, path: Path, channels: int) -> None:
        self.path, self.channels = path, channels
        try:
            self._member = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 - read as long as the object lives
            shape, fortran, dtype = _header(self._member)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"images={path}: holds no readable arr_0 ({type(error).__name__}: {error})") from error
        self._start = self._member.tell()
        if dtype != np.uint8 or fortran or len(shape) != 4 or shape[-1] not in (1, 3):
            raise UserError(f"images={path}: arr_0 is {dtype} {shape}, not uint8 [n, H, W, 1 or 3] in C order")
        if shape[-1] == 3 and channels == 1:
            raise UserError(f"images={path}: arr_0 has 3 channels, the features are of grey images; give grey ones")
        self._stored, self.shape = shape, (channels, *shape[1:3])

    def __len__(self) -> int:
        return self._stored[0]

    def __call__(self, first: int, end: int) -> LEVELS:
        """Return images number ``first`` to ``end - 1``; UserError where the file is damaged or ends before them."""
        size = int(np.prod(self._stored[1:]))
        try:
            self._member.seek(self._start + first * size)
            data = self._member.read((end - first) * size)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"images={self.path}: damaged ({error}); get or write it again") from error
        if len(data) != (end - first) * size:
            raise UserError(f"images={self.path}: ends within image {first + len(data) // size}; write it again")
        images = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(end - first, *self._stored[1:])
        return images.permute(0, 3, 1, 2).expand(-1, self.channels, -1, -1)


def open_images(path: str | Path, channels: int) -> FolderImages | NpzImages:
    """Open a folder of images or an .npz with arr_0; UserError for anything else."""
    path = Path(path).expanduser()
    if path.is_dir():
        return FolderImages(path, channels)
    if not path.is_file():
        raise UserError(f"images={path}: no such file or folder; give a folder of images, or an .npz with arr_0")
    return NpzImages(path, channels)


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return reader(file)
