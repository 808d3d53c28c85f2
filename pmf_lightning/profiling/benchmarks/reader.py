"""Benchmark reading a data source against torchvision's reader of the same images."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader
from tqdm import tqdm

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.loader import BatchFetcher, identity_collate
from pmf_lightning.data.shards.images import ShardImages
from pmf_lightning.data.shards.manifest import MAKE
from pmf_lightning.data.shards.source import Shards
from pmf_lightning.profiling.benchmarks.timing import ratios
from pmf_lightning.profiling.benchmarks.torchvision_readers import Cropped, torchvision_reader
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import UserError

WIDTH, HEIGHT, QUALITY = 500, 375, 95


def make_originals(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files to ``folder``/<class>/: crops of a photograph of a temple and of one of a flower."""
    from sklearn.datasets import load_sample_images  # takes a second to import, only needed here

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(count):
        label = i % len(photographs)
        photograph = photographs[label]
        across, down = rng.uniform("benchmark", "original", i, count=2).tolist()
        left, top = int(across * (photograph.width - WIDTH + 1)), int(down * (photograph.height - HEIGHT + 1))
        path = folder / f"class{label}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=QUALITY)


AHEAD = 2  # batches that a loading process prefetches: DataLoader's default

ON_THE_SPOT = 256  # number of originals to make if none are given


@dataclass(frozen=True)
class ReaderSettings:
    """Settings of the benchmark: read ``images`` in batches of ``batch``, for each of ``num_workers`` processes.

    ``originals`` is a folder with a folder per class; None: temporary photographs of 500 x 375 pixels are made.
    """

    originals: str | None
    images: int
    batch: int
    num_workers: list[int]

    def __post_init__(self) -> None:
        for name in ("images", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"reader.{name}={getattr(self, name)}: set it to 1 or more")
        if not self.num_workers or min(self.num_workers) < 0:
            raise UserError(f"reader.num_workers={self.num_workers}: list numbers of loading processes, such as [0, 2]")
        if self.originals is not None and not Path(self.originals).is_dir():
            raise UserError(
                f"reader.originals={self.originals}: there is no such folder; leave it out to generate some"
            )


class Stopwatch:
    """Accumulates the seconds spent inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        """Wrap a function so that its time is added."""

        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


def benchmark_reader(source: DataSource, settings: ReaderSettings, repeats: int) -> dict[str, Any]:
    """Time reading ``source`` against torchvision with the same crop, in turns in one process.

    Both deliver batches of uint8 [B, C, H, W] in random order through a DataLoader. "by_workers" has, for each number
    of loading processes, the medians in images per second and the ratio with its extremes. Shards are compared with an
    ImageFolder of JPEG files ("files"), other sources with their own images ("torchvision", see torchvision_readers).
    Raises UserError for latents, or for grey shards.
    """
    if source.latents or (isinstance(source, Shards) and source.channels != 3):
        raise UserError(f"what=data reads colour pixels of shards, or any other images; {MAKE} makes shards")
    source.check()
    if isinstance(source, Shards):
        return _benchmark_shards(source, settings, repeats)
    images = source.train()
    with TemporaryDirectory(prefix="copies") as folder:
        if settings.originals is None:
            theirs, described = torchvision_reader(source, images, Path(folder))
        else:
            theirs, described = ImageFolder(settings.originals, Cropped(source.resolution, source.channels)), "files"
        readers = {"ours": (BatchFetcher(images), identity_collate), "torchvision": (theirs, None)}
        return {
            "resolution": source.resolution,
            "images": len(images),
            "torchvision": described,
            "by_workers": {str(w): _race(readers, settings, w, repeats) for w in settings.num_workers},
        }


def _benchmark_shards(source: Shards, settings: ReaderSettings, repeats: int) -> dict[str, Any]:
    """Time shards against JPEG files.

    "share_of_time" has, without loading processes, the fraction of time for decoding shards, decoding files and
    cropping files.
    """
    shards = source.train()
    with _originals(settings.originals) as folder:
        files = ImageFolder(folder, Cropped(source.resolution))
        sizes = [Path(path).stat().st_size for path, _ in files.samples]
        readers = {"shards": (BatchFetcher(shards), identity_collate), "files": (files, None)}
        return {
            "resolution": source.resolution,
            "bytes_per_record": round(float(shards.records.sizes.mean())),
            "bytes_per_file": round(statistics.mean(sizes)),
            "originals": settings.originals
            or f"{len(sizes)} of scikit-learn's photographs, 500x375, made for the time",
            "by_workers": {str(w): _race(readers, settings, w, repeats) for w in settings.num_workers},
            "share_of_time": _shares(shards, files, settings, source.resolution),
        }


def describe(numbers: dict[str, Any]) -> str:
    """Format the result as a few lines."""
    lines = []
    for num_workers, n in numbers["by_workers"].items():
        (_, ours), (theirs, speed) = list(n.items())[:2]
        other = "cropping files" if theirs == "files" else theirs
        span = f"{n['ratio']:.1f}x ({n['ratio_min']:.1f} to {n['ratio_max']:.1f})"
        lines.append(f"{num_workers} loading processes: {ours:.0f} images/s, {other} {speed:.0f}, {span}")
    if "share_of_time" not in numbers:
        return "\n".join([*lines, f"torchvision: {numbers['torchvision']}"])
    share = numbers["share_of_time"]
    lines.append(
        f"decoding takes {share['shards_decoding']:.0%} of reading shards; of files {share['files_decoding']:.0%}, "
        f"and cropping {share['files_cropping']:.0%}"
    )
    return "\n".join(lines)


@contextmanager
def _originals(given: str | None) -> Iterator[Path]:
    if given is not None:
        yield Path(given)
        return
    with TemporaryDirectory(prefix="originals") as folder:
        make_originals(Path(folder), ON_THE_SPOT)
        yield Path(folder)


def _race(
    readers: Mapping[str, tuple[Dataset, Callable | None]], settings: ReaderSettings, num_workers: int, repeats: int
) -> dict[str, float]:
    """Time two readers in turns, after one unmeasured turn each that fills the system's cache.

    ``readers`` has each dataset with its ``collate_fn`` by name, ours first. Returns images per second, and the ratios.
    """
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in tqdm(range(-1, repeats), f"{num_workers} loading processes", leave=False):
        for name in list(readers) if turn % 2 else reversed(readers):
            took = _seconds_per_image(*readers[name], settings, num_workers)
            if turn >= 0:
                seconds[name].append(took)
    speeds = {name: 1 / statistics.median(each) for name, each in seconds.items()}
    return speeds | ratios(*seconds.values())


def _seconds_per_image(images: Dataset, collate: Callable | None, settings: ReaderSettings, num_workers: int) -> float:
    """Read all images; the time starts after the prefetched batches, when the processes are running."""
    ahead = num_workers * AHEAD
    batches = _batches(len(images), settings.batch, ahead + max(1, settings.images // settings.batch))
    stream = iter(DataLoader(images, batch_sampler=batches, collate_fn=collate, num_workers=num_workers))
    for _ in range(ahead):
        next(stream)
    begun = time.perf_counter()
    count = sum(len(labels) for _, labels, *_ in stream)
    return (time.perf_counter() - begun) / count


def _batches(count: int, batch: int, number: int) -> list[list[int]]:
    """Return ``number`` batches of indices below ``count``, cycling through one random order."""
    order = rng.permutation("benchmark", "reader", count=count).tolist()
    return [[order[i % count] for i in range(k * batch, (k + 1) * batch)] for k in range(number)]


def _shares(shards: ShardImages, files: ImageFolder, settings: ReaderSettings, size: int) -> dict[str, float]:
    """Return the fractions of the reading time for decoding, and for cropping files."""
    decoding, decoding_files, cropping = Stopwatch(), Stopwatch(), Stopwatch()
    record_format = replace(shards.format, decode=decoding.around(shards.format.decode))
    timed_shards = ShardImages(shards.records, shards.rows, record_format, shards.tally)
    timed_files = ImageFolder(files.root, cropping.around(Cropped(size)), loader=decoding_files.around(pil_loader))
    total = {}
    for name, images, collate in (
        ("shards", BatchFetcher(timed_shards), identity_collate),
        ("files", timed_files, None),
    ):
        batches = _batches(len(images), settings.batch, max(1, settings.images // settings.batch))
        begun = time.perf_counter()
        for _ in DataLoader(images, batch_sampler=batches, collate_fn=collate):
            pass
        total[name] = time.perf_counter() - begun
    return {
        "shards_decoding": decoding.seconds / total["shards"],
        "files_decoding": decoding_files.seconds / total["files"],
        "files_cropping": cropping.seconds / total["files"],
    }
