"""Compute statistics of real images, write them in all dialects, and cache those of the run's data."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.data.loader import iterate_batches, tally_of
from pmf_lightning.distributed.collectives import chunks_of_this_rank, on_all_ranks, on_rank_zero, rank_and_world
from pmf_lightning.encoders.base import Extractor
from pmf_lightning.evaluation.evaluator import measure
from pmf_lightning.evaluation.references import (
    EDM2_NAMES,
    Reference,
    cached_file,
    load_reference,
    read_cached,
    save_npz,
    write_npz,
)
from pmf_lightning.utils import rng
from pmf_lightning.utils.cache import atomic_write, sole_writer
from pmf_lightning.utils.errors import UserError

FORMAT = "pmf_lightning statistics 1"
Levels = Callable[[int, int], UInt8[Tensor, "b c h w"]]


def statistics(
    levels: Levels,
    n: int,
    extractor: Extractor,
    batch_size: int,
    features: int,
    device: torch.device | str,
    about: dict[str, Any],
) -> Reference:
    """Compute statistics of images number 0 to n - 1, ``levels(first, end)``.

    The features of ``features`` randomly chosen images are stored too. ``about`` describes the images. All ranks must
    call it and get the same result. Raises UserError for fewer than two images.
    """
    if n < 2:
        raise UserError(f"n={n}: statistics need at least two images")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: at least one image at a time is needed")
    if features < 0:
        raise UserError(f"features={features}: set it to 0 (none) or more")
    stored_rows = rng.permutation("statistics", "features", count=n)[:features].sort().values if features else None
    device = torch.device(device)
    network = on_all_ranks(lambda: extractor.open(device))
    measured = measure(levels, n, batch_size, extractor, network, device, stored_rows, "real images")
    metadata = {
        "format": FORMAT,
        **about,
        "n": n,
        "extractor_name": extractor.name,
        "extractor": extractor.fingerprint(),
    }
    return Reference(measured.mu, measured.sigma, n, measured.features, about=metadata)


def split_statistics(
    source: DataSource,
    extractor: Extractor,
    n: int | None,
    batch_size: int,
    features: int,
    device: torch.device | str,
    num_workers: int = 0,
) -> Reference:
    """Return ``statistics`` of a source's training split, or of ``n`` randomly chosen images of it.

    Each rank prefetches with ``num_workers`` processes. Raises UserError for latents, or if ``n`` exceeds the split.
    """
    images, count, about = labelled_images(source, n, batch_size, num_workers)

    def levels(first: int, end: int) -> Tensor:
        return images(first, end)[0]

    return statistics(levels, count, extractor, batch_size, features, device, about)


def labelled_images(
    source: DataSource, n: int | None, batch_size: int, num_workers: int, check: Callable[[int], None] | None = None
) -> tuple[Callable[[int, int], tuple[Tensor, Tensor]], int, dict[str, Any]]:
    """Return the images of a training split as ``images(first, end) -> (uint8, labels)``, their number, and metadata.

    ``images`` must be called for the chunks of this rank in their order; ``n`` random images are taken, or all. The
    number is passed to ``check`` first. Raises UserError for latents, or if ``n`` exceeds the split.
    """
    split = _pixels(source)
    count = len(split) if n is None else n
    if count > len(split):
        raise UserError(f"n={n}: the training split of {source.name} has {len(split)} images; set n to that or less")
    if check is not None:
        check(count)
    rows = None if n is None else rng.permutation("statistics", "images", count=len(split))[:n].sort().values
    batches = None

    def images(first: int, end: int) -> tuple[Tensor, Tensor]:
        nonlocal batches
        batches = batches or _read_ahead(split, rows, count, batch_size, num_workers)  # ranks are known by now
        return next(batches)

    return images, count, _about(source)


def _pixels(source: DataSource) -> Any:
    if source.latents:
        raise UserError(f"data={source.name}: statistics are of pixels, these are latents; choose the data with pixels")
    return source.train()


def _read_ahead(
    split: Any, rows: Tensor | None, n: int, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of this rank's chunks in order; UserError if too many records cannot be read."""
    numbers = torch.arange(n) if rows is None else rows
    batches = [numbers[first:end].tolist() for first, end in chunks_of_this_rank(n, batch_size)]
    for images, labels, _ in iterate_batches(split, batches, num_workers, tally_of(split, rank_and_world()[1])):
        yield images, labels


def _about(source: DataSource) -> dict[str, Any]:
    return {
        "data": source.name,
        "split": "train",
        "data_fingerprint": source.fingerprint(),
        "resolution": source.resolution,
        "channels": source.channels,
        "classes": source.classes,
        "crop": source.crop,
    }


def cached_statistics(
    source: DataSource,
    extractor: Extractor,
    batch_size: int,
    features: int,
    device: torch.device | str,
    cache_dir: str | None,
) -> Reference:
    """Return ``split_statistics`` of the complete training split, computed once and cached."""
    path = cached_file(cache_dir, FORMAT, source.fingerprint(), extractor.fingerprint(), features)
    reference = on_rank_zero(lambda: read_cached(path, extractor.name))  # other machines have other cache folders
    if reference is None:
        measured = split_statistics(source, extractor, None, batch_size, features, device)
        on_rank_zero(lambda: _save(measured, path))
        reference = on_rank_zero(lambda: load_reference(path, extractor.name))
    description = f"data={source.name} (cached at {reference.file['path']})"
    return replace(reference, file={**reference.file, "path": description})


def _save(reference: Reference, path: Path) -> None:
    with sole_writer(path):
        save_npz(reference, path)


def save_all(reference: Reference, out: Path) -> list[Path]:
    """Write ``out`` (.npz: mu, sigma, features, about) and, next to it, the other dialects; return the paths.

    These are ``<name>_ref.npz`` (ref_mu, ref_sigma) and ``<name>.pkl`` (EDM2's). Raises OSError.
    """
    _, other, pickled = paths_of(out)
    save_npz(reference, out)
    moments = {"ref_mu": reference.mu.numpy(), "ref_sigma": reference.sigma.numpy()}
    write_npz(other, moments | {"about": np.array(json.dumps(dict(reference.about)))})
    name = reference.about["extractor_name"]
    arrays = {"mu": reference.mu.numpy(), "sigma": reference.sigma.numpy()}
    with atomic_write(pickled) as draft, draft.open("wb") as file:
        pickle.dump({EDM2_NAMES.get(name, name): arrays, "about": dict(reference.about)}, file)
    return paths_of(out)


def paths_of(out: Path) -> list[Path]:
    """Return the files that ``save_all`` writes."""
    return [out, out.with_name(f"{out.stem}_ref.npz"), out.with_suffix(".pkl")]
