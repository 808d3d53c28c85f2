"""Find the images of an input: class folders, or WebDataset tars whose headers are listed once."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pmf_lightning.data.images.class_folders import describe_classes, in_order
from pmf_lightning.data.images.files import zip_of
from pmf_lightning.data.images.kinds import is_hidden
from pmf_lightning.data.images.labels import no_such_key, refuse_captions
from pmf_lightning.data.images.listing import LeftOut, describe_skipped
from pmf_lightning.data.shards.writing.class_numbers import by_name, by_number
from pmf_lightning.data.shards.writing.inputs import Inputs, Unreadable, folder_inputs, record_keys
from pmf_lightning.data.shards.writing.processes import in_processes
from pmf_lightning.data.shards.writing.tar_files import find_tars, is_tar, tar_stem
from pmf_lightning.data.shards.writing.tar_records import LABEL, TarListing, TarTask, list_tar, needed
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError


def tar_inputs(
    tars: list[Path],
    classes: int | None,
    names_file: str | None,
    num_workers: int,
    progress: Callable[[int], None],
    unpacked: Path,
    rule: str = "auto",
) -> Inputs:
    """List the images of ``tars``, whose records hold an image and its label as ``<key>.jpg`` and ``<key>.cls``.

    Without any label the classes are those of ``class_numbers.by_name``. By the ``rule`` "none" all images are of one
    class, by "json:<key>" their classes are in ``<key>.json``, as img2dataset writes it. ``num_workers`` processes read
    the headers, and unpack compressed tars into the folder ``unpacked``. Raises UserError if no image is found.
    """
    if rule not in ("auto", "none") and not rule.startswith("json:"):
        raise UserError(f"label={rule}: it is for folders and zips; tars take auto, none or json:<key>")
    tasks = [TarTask(tar, unpacked, rule) for tar in tars]
    listings = sorted(in_processes(list_tar, tasks, num_workers, progress), key=lambda listing: listing.file)
    _check_records(listings, tars, rule)
    if any(listing.keys for listing in listings):
        found = _labelled(listings, tars, rule, classes, names_file)
    else:
        found = _named(listings, classes, names_file)
    files = _names(tars)
    left_out = [one for listing in listings for one in listing.left_out]
    return Inputs(
        root=tars[0].parent if len({tar.parent for tar in tars}) == 1 else Path("/"),
        names=files,
        files=np.repeat(np.arange(len(listings)), found.counts),
        starts=found.places[:, 1].copy(),
        sizes=found.places[:, 2].copy(),
        keys=record_keys(found.keys),
        labels=found.labels,
        class_names=found.names,
        broken=[unreadable for listing in listings for unreadable in listing.broken],
        left_out=left_out,
        summary=_summary(tars, found, left_out),
        unpacked={name: one.plain for name, one in zip(files, listings, strict=True) if one.plain is not None},
    )


class _Found(NamedTuple):
    """The images of all tars."""

    keys: list[str]
    places: np.ndarray  # [n, 3]: label or 0, first byte, bytes
    counts: list[int]  # images of each tar
    labels: np.ndarray  # [n]
    names: list[str]  # of the classes
    summary: str | None


def _check_records(listings: list[TarListing], tars: list[Path], rule: str) -> None:
    """Raise UserError if no record can be used; where some have labels, list those without one as broken."""
    if any(listing.keys for listing in listings):
        for listing in listings:
            listing.broken += [
                Unreadable(bare.name, needed("an image without a label"), listing.file) for bare in listing.bare
            ]
        return
    with_companions = any(listing.companions for listing in listings)
    if not with_companions and any(listing.bare for listing in listings):
        return
    broken = [unreadable for listing in listings for unreadable in listing.broken]
    if rule.startswith("json:") and broken:
        raise no_such_key(f"label={rule}", rule[5:], next((one.example for one in listings if one.example), None))
    why = f", first {broken[0].file}: {broken[0].reason}" if broken else ""
    hint = "; label=none and label=json:<key> read others" if with_companions else ""
    raise UserError(f"in={tars[0]}: no image with a label (an image, and .{LABEL} of the same name){why}{hint}")


def _labelled(
    listings: list[TarListing], tars: list[Path], rule: str, classes: int | None, names_file: str | None
) -> _Found:
    """Return the images that have labels, by ``rule``."""
    keys = [key for listing in listings for key in listing.keys]
    places = np.array([place for listing in listings for place in listing.places], np.int64)
    if rule == "auto":
        labels, names, summary = by_number(places[:, 0].copy(), keys, classes, names_file)
    elif classes is not None or names_file is not None:
        raise UserError(f"classes and class_names are for labels in .{LABEL}, not for label={rule}: leave both out")
    else:
        labels, names, summary = _by_rule(listings, tars, rule)
    return _Found(keys, places, [len(listing.keys) for listing in listings], labels, names, summary)


def _named(listings: list[TarListing], classes: int | None, names_file: str | None) -> _Found:
    """Return images without labels, whose classes are names of tars or folders."""
    if classes is not None or names_file is not None:
        raise UserError("classes and class_names are for tars with labels; these have names: leave both out")
    rows = [(listing.file, *bare[:2]) for listing in listings for bare in listing.bare]
    chosen, keys = by_name([row[0] for row in rows], [row[2] for row in rows], [row[1] for row in rows])
    places = np.array([(0, bare.start, bare.size) for listing in listings for bare in listing.bare], np.int64)
    counts = [len(listing.bare) for listing in listings]
    return _Found(keys, places, counts, *_numbered(chosen), "the classes are names of tars or folders")


def _by_rule(listings: list[TarListing], tars: list[Path], rule: str) -> tuple[np.ndarray, list[str], str | None]:
    """Return labels, class names and a message by label=none or label=json:<key>."""
    found = [name for listing in listings for name in listing.classes]
    if rule == "none":
        folder = tar_stem(tars[0].name) if len(tars) == 1 else tars[0].absolute().parent.name
        return np.zeros(len(found), np.int64), [folder or "images"], "all of them are one class: label=none"
    refuse_captions(found, f"label={rule}")
    return *_numbered(found), None


def _numbered(chosen: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return the labels of classes that are given by name, and the names in their order."""
    names = in_order(list(set(chosen)))
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[name] for name in chosen], np.int64), names


def _summary(tars: list[Path], found: _Found, left_out: list[LeftOut]) -> list[str]:
    where = tars[0] if len(tars) == 1 else f"{len(tars):,} tars"
    lines = [f"{counted(len(found.keys), 'image')} of {describe_classes(found.names)} in {where}"]
    return lines + [found.summary] * bool(found.summary) + ([describe_skipped(left_out)] if left_out else [])


def _names(tars: list[Path]) -> list[str]:
    """Return the names of tars, in listing order: relative to their folder, or to the root if there are several."""
    tars = sorted(tars, key=lambda tar: tar.name)
    one = len({tar.parent for tar in tars}) == 1
    return [tar.name if one else str(tar.absolute().relative_to("/")) for tar in tars]


def find_inputs(
    given: str, classes: int | None, class_names: str | None, num_workers: int, unpacked: Path, label: str = "auto"
) -> Inputs:
    """List the images in ``given``: class folders, a zip, or a pattern for ``find_tars``; print a summary.

    ``classes`` and ``class_names`` are for tars (see ``tar_inputs``), whose headers are read by ``num_workers``
    processes. ``unpacked`` is a folder for uncompressed copies of compressed tars. Raises UserError.
    """
    source = Path(given).expanduser()
    if _holds_class_folders(source):
        if classes is not None or class_names is not None:
            raise UserError("classes and class_names are for tars; class folders have their names: leave both out")
        inputs = folder_inputs(source, label)
    else:
        tars, others = find_tars(given)
        with tqdm(desc="listing", unit="record", mininterval=0.5) as bar:
            update = lambda done: bar.update(done - bar.n)  # noqa: E731
            inputs = tar_inputs(tars, classes, class_names, num_workers, update, unpacked, label)
        if others:
            inputs.left_out.extend(others)
            inputs.summary.append(describe_skipped(others))
    print("\n".join(inputs.summary), flush=True)
    return inputs


def _holds_class_folders(source: Path) -> bool:
    """Return whether ``source`` is read as class folders, or a zip, instead of tars; UserError if it has both."""
    if zip_of(source) is not None:
        return True
    entries = [entry for entry in source.iterdir() if not is_hidden(entry.name)] if source.is_dir() else []
    tars = any(is_tar(entry.name) and entry.is_file() for entry in entries)
    if tars and any(entry.is_dir() for entry in entries):
        raise UserError(f"in={source}: it holds tars and folders; give the tars as '{source}/*.tar', or move them away")
    return source.is_dir() and not tars
