"""Measure real images in all encoders of a battery in one pass, and write what losses and the judge compare with."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pmf_lightning.distributed.collectives import gather_objects, on_all_ranks, on_rank_zero
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.encoders.battery.reference_files import FORMAT, INDEX, KINDS
from pmf_lightning.evaluation.battery.encode import BatteryEncoder
from pmf_lightning.evaluation.moments import FeatureStatistics
from pmf_lightning.evaluation.references import write_npz
from pmf_lightning.objectives.discrepancies.mmd import MMDReference
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.errors import UserError

# (first, end) -> uint8 images [b, C, H, W] and labels [b], -1 where unknown
Images = Callable[[int, int], tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]


@dataclass(frozen=True)
class ReferenceSettings:
    """What to write besides moments.

    Args:
        nystrom: number of landmarks of RDM's reference of each encoder; 0: none. All features are on disk meanwhile.
        bandwidth_scale: factor of the median distance that gives the bandwidth of its kernel.
        bank: number of random images whose features are stored as rows, with labels; 0: none.
    """

    nystrom: int = 0
    bandwidth_scale: float | int = 1.0
    bank: int = 0

    def check(self, n: int) -> None:
        """Raise UserError for more landmarks or rows than images, or fewer than two images."""
        if n < 2:
            raise UserError(f"n={n}: statistics need at least two images")
        for name in ("nystrom", "bank"):
            if getattr(self, name) > n:
                raise UserError(f"{name}={getattr(self, name)}: there are {n} images; set it to that or less")


def write_references(
    battery: Battery,
    images: Images,
    n: int,
    settings: ReferenceSettings,
    batch_size: int,
    device: torch.device,
    about: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Measure images number 0 to n - 1 and write a folder that ``read_references`` reads; return its index.

    All ranks must call it, with one disk. ``about`` describes the images: data, resolution, channels, classes.
    Raises UserError for settings that do not fit.
    """
    settings.check(n)
    widths = battery.widths(about["channels"], about["resolution"])
    encode = BatteryEncoder(battery, widths, "uint8", "float32", device)
    kept = _kept_rows(n, settings)
    with _row_files(out / ".rows", widths, kept) as store:
        labels: dict[int, int] = {}

        def pixels(first: int, end: int) -> Tensor:
            levels, found = images(first, end)
            labels.update(zip(range(first, end), found.tolist(), strict=True))
            return levels

        measured = encode.measure(pixels, n, batch_size, title="real images", store=store and store.write)
        if store is not None:
            on_all_ranks(store.flush)
        all_labels = _gathered(labels, n)
        about, prints = {**about, "n": n}, battery.fingerprints()
        return on_rank_zero(lambda: _write(measured, prints, store, all_labels, settings, device, about, out))


def _kept_rows(n: int, settings: ReferenceSettings) -> Int64[Tensor, " m"] | None:
    """Return the sorted numbers of the images whose features are written as rows, None for none."""
    if settings.nystrom:
        return torch.arange(n)
    return _bank_rows(n, settings.bank) if settings.bank else None


def _bank_rows(n: int, bank: int) -> Int64[Tensor, " m"]:
    return rng.permutation("statistics", "features", count=n)[:bank].sort().values


def _gathered(labels: dict[int, int], n: int) -> Int64[Tensor, " n"]:
    """Return the labels of all ranks in the order of the images."""
    together = {number: label for part in gather_objects(labels) for number, label in part.items()}
    return torch.tensor([together[number] for number in range(n)], dtype=torch.int64)


class RowFiles:
    """Features of the images ``kept`` in a file per encoder, written by all ranks: they may not fit in memory."""

    def __init__(self, folder: Path, widths: Mapping[str, int], kept: Int64[Tensor, " m"]):
        self.folder, self.kept = folder, kept
        self.files = {name: np.load(_file(folder, name), mmap_mode="r+") for name in widths}

    def write(self, features: Mapping[str, Float[Tensor, "b d"]], first: int) -> None:
        """Write the features of the images number ``first``, ``first + 1``, ..., as far as they are kept."""
        count = len(next(iter(features.values())))
        start, end = torch.searchsorted(self.kept, torch.tensor([first, first + count])).tolist()
        rows = self.kept[start:end] - first
        for name, file in self.files.items():
            file[start:end] = features[name].cpu().numpy()[rows.numpy()]

    def flush(self) -> None:
        """Write to disk what is in memory."""
        for file in self.files.values():
            file.flush()

    def rows(self, name: str) -> Float[Tensor, "m d"]:
        """Return all rows of an encoder, read when they are used."""
        return torch.from_numpy(np.load(_file(self.folder, name), mmap_mode="c"))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


@contextmanager
def _row_files(folder: Path, widths: Mapping[str, int], kept: Int64[Tensor, " m"] | None) -> Iterator[RowFiles | None]:
    """Create the files of rows, and remove them at the end; None if no rows are kept."""
    if kept is None:
        yield None
        return

    def create() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, width in widths.items():
            np.lib.format.open_memmap(_file(folder, name), "w+", np.float32, (len(kept), width)).flush()

    on_rank_zero(create)
    try:
        yield RowFiles(folder, widths, kept)
    finally:
        on_rank_zero(lambda: rmtree(folder, ignore_errors=True))


def _write(
    measured: Mapping[str, FeatureStatistics],
    fingerprints: Mapping[str, str],
    store: RowFiles | None,
    labels: Int64[Tensor, " n"],
    settings: ReferenceSettings,
    device: torch.device,
    about: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    bank = _bank_rows(len(labels), settings.bank)
    encoders = {}
    for name, one in measured.items():
        files = {"moments": {"mu": one.mu.numpy(), "sigma": one.sigma.numpy()}}
        if settings.nystrom:
            pool = store.rows(name).to(device)
            fitted = MMDReference.fit(pool, settings.nystrom, scale=settings.bandwidth_scale)
            files["nystrom"] = {key: value.cpu().numpy() for key, value in fitted.state_dict().items()}
        if settings.bank:
            places = torch.searchsorted(store.kept, bank)
            files["rows"] = {"features": store.rows(name)[places].numpy(), "labels": labels[bank].numpy()}
        for kind, arrays in files.items():
            write_npz(out / f"{name}{KINDS[kind]}.npz", arrays)
        encoders[name] = {"fingerprint": fingerprints[name], "width": len(one.mu), "holds": sorted(files)}
    index = {"format": FORMAT, **about, **asdict(settings), "encoders": encoders}
    with atomic_write(out / INDEX) as draft:
        draft.write_text(json.dumps(index, indent=2) + "\n")
    return index
