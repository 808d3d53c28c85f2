"""What torchvision reads the images of a data source with, for the benchmark of reading."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import pil_loader
from torchvision.transforms.functional import pad, pil_to_tensor

from pmf_lightning.data.dataset import DataSource, ImageDataset
from pmf_lightning.data.sources.named.arrays import Arrays
from pmf_lightning.data.transforms import centre_crop

COPIES = 512  # images that are written as PNG where torchvision has no reader


class Cropped:
    """The transform of files: ADM's crop to ``size``, as uint8 [channels, size, size]."""

    def __init__(self, size: int, channels: int = 3):
        self.size, self.channels = size, channels

    def __call__(self, image: Image.Image) -> Tensor:
        """Crop one image."""
        return pil_to_tensor(centre_crop(image if self.channels == 3 else image.convert("L"), self.size))


class Fitted:
    """The transform of torchvision's arrays: to ``size`` pixels as named/fitting.py does, uint8 [channels, ...]."""

    def __init__(self, size: int, channels: int):
        self.size, self.mode = size, {1: "L", 3: "RGB"}[channels]

    def __call__(self, image: Image.Image) -> Tensor:
        """Fit one image."""
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if image.width > self.size:
            return pil_to_tensor(centre_crop(image, self.size))
        if (factor := self.size // image.width) > 1:
            image = image.resize((image.width * factor,) * 2, Image.Resampling.BICUBIC)
        rest = self.size - image.width
        return pil_to_tensor(pad(image, [rest // 2, rest // 2, rest - rest // 2, rest - rest // 2]) if rest else image)


class Files(Dataset):
    """Image files by torchvision's loader, as ImageFolder reads them."""

    def __init__(self, samples: list[tuple[Path, int]], transform: Cropped):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(pil_loader(path)), label


def torchvision_reader(source: DataSource, images: ImageDataset, folder: Path) -> tuple[Dataset, str]:
    """Return a dataset of torchvision with the same images, and its description.

    Sets that torchvision has as arrays are its own class over the same arrays; files are read by its ImageFolder's
    loader. Where torchvision has neither, the first ``COPIES`` of ``images`` are written to ``folder`` as PNG files.
    """
    size, channels = source.resolution, source.channels
    if (arrays := getattr(source, "original_arrays", lambda: None)()) is not None:
        return _set_of(source.dataset, arrays, Fitted(size, channels)), f"torchvision.datasets.{source.dataset}"
    if (files := getattr(source, "original_files", lambda: None)()) is not None:
        return Files(files, Cropped(size, channels)), "the same files by ImageFolder's loader"
    count = min(COPIES, len(images))
    for start in range(0, count, 64):
        rows = range(start, min(start + 64, count))
        for row, image, label in zip(rows, *images.batch(rows), strict=True):
            path = folder / f"{label:05d}" / f"{row:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
    samples = [(path, int(path.parent.name)) for path in sorted(folder.glob("*/*.png"))]
    return Files(samples, Cropped(size, channels)), f"{count} of the images as PNG files by ImageFolder's loader"


def _set_of(name: str, arrays: Arrays, transform: Fitted) -> Dataset:
    """Return torchvision's class ``name`` with arrays that are read already: its own reading checks downloads."""
    kind = getattr(datasets, name)
    made = kind.__new__(kind)
    made.transform, made.target_transform = transform, None
    if issubclass(kind, datasets.MNIST):
        made.data, made.targets = torch.from_numpy(arrays.images[:, 0].copy()), torch.from_numpy(arrays.labels)
    elif issubclass(kind, datasets.CIFAR10):
        made.data, made.targets = arrays.images.transpose(0, 2, 3, 1).copy(), arrays.labels.tolist()
    else:
        made.data, made.labels = arrays.images, arrays.labels
    return made
