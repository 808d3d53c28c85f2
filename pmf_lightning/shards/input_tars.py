"""Tars as input: one walk over their headers finds every image, which is read by its place later."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pmf_lightning.data.class_folders import in_order, say_classes
from pmf_lightning.data.listing import LeftOut, say_left_out
from pmf_lightning.errors import UserError
from pmf_lightning.shards.class_numbers import by_name, by_number
from pmf_lightning.shards.inputs import Inputs, Unreadable
from pmf_lightning.shards.keys import record_keys
from pmf_lightning.shards.processes import in_processes
from pmf_lightning.shards.tar_records import LABEL, TarListing, TarTask, list_tar, needed


def tar_inputs(
    tars: list[Path],
    classes: int | None,
    names_file: str | None,
    workers: int,
    progress: Callable[[int], None],
    unpacked: Path,
) -> Inputs:
    """List the images of ``tars``, whose records hold an image and its label as ``<key>.jpg`` and ``<key>.cls``.

    Without any label the classes are those of ``class_numbers.by_name``. ``workers`` processes read the headers, and
    unpack compressed tars into the folder ``unpacked``. Raises UserError where no image is found.
    """
    tasks = [TarTask(tar, unpacked) for tar in tars]
    listings = sorted(in_processes(list_tar, tasks, workers, progress), key=lambda listing: listing.file)
    labelled = any(listing.keys for listing in listings)
    if labelled:
        for listing in listings:
            listing.broken += [Unreadable(bare.name, needed("an image alone"), listing.file) for bare in listing.bare]
    broken = [unreadable for listing in listings for unreadable in listing.broken]
    with_companions = any(listing.companions for listing in listings)
    if not labelled and (with_companions or not any(listing.bare for listing in listings)):
        why = f", first {broken[0].file}: {broken[0].reason}" if broken else ""
        raise UserError(f"in={tars[0]}: no image with a label (an image, and .{LABEL} of the same name){why}")
    if labelled:
        keys = [key for listing in listings for key in listing.keys]
        places = np.array([place for listing in listings for place in listing.places], np.int64)
        labels, names, said = by_number(places[:, 0].copy(), keys, classes, names_file)
        counts = [len(listing.keys) for listing in listings]
    else:
        if classes is not None or names_file is not None:
            raise UserError("classes and class_names are for tars with labels; these have names: leave both out")
        labels, names, keys = _named(listings)
        places = np.array([(0, bare.start, bare.size) for listing in listings for bare in listing.bare], np.int64)
        counts, said = [len(listing.bare) for listing in listings], "the classes are names of tars or folders"
    files = _names(tars)
    left_out = [one for listing in listings for one in listing.left_out]
    return Inputs(
        root=tars[0].parent if len({tar.parent for tar in tars}) == 1 else Path("/"),
        names=files,
        files=np.repeat(np.arange(len(listings)), counts),
        starts=places[:, 1].copy(),
        sizes=places[:, 2].copy(),
        keys=record_keys(keys),
        labels=labels,
        class_names=names,
        broken=broken,
        left_out=left_out,
        said=_said(tars, keys, names, said, left_out),
        unpacked={name: one.plain for name, one in zip(files, listings, strict=True) if one.plain is not None},
    )


def _named(listings: list[TarListing]) -> tuple[np.ndarray, list[str], list[str]]:
    """Return labels, names of classes and keys of images that have no label."""
    rows = [(listing.file, *bare[:2]) for listing in listings for bare in listing.bare]
    chosen, keys = by_name([row[0] for row in rows], [row[2] for row in rows], [row[1] for row in rows])
    names = in_order(list(set(chosen)))
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[name] for name in chosen], np.int64), names, keys


def _said(tars: list[Path], keys: list[str], names: list[str], said: str | None, left_out: list[LeftOut]) -> list[str]:
    where = tars[0] if len(tars) == 1 else f"{len(tars):,} tars"
    lines = [f"{len(keys):,} images of {say_classes(names)} in {where}"]
    return lines + [said] * bool(said) + ([say_left_out(left_out)] if left_out else [])


def _names(tars: list[Path]) -> list[str]:
    """Name the tars, in the order of their listings, below their folder, or from the root of all if there are more."""
    tars = sorted(tars, key=lambda tar: tar.name)
    one = len({tar.parent for tar in tars}) == 1
    return [tar.name if one else str(tar.absolute().relative_to("/")) for tar in tars]
