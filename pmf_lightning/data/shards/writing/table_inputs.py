"""Input tables: the encoded images of a Hugging Face set or of parquet files, copied to plain files in their order.

Shards are random samples, and parquet files are read by row groups of many images. So the images of each table are
copied once, one after the other, and are then read by position, as those in tars are.
"""

import shutil
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from pmf_lightning.data.images.class_folders import describe_classes
from pmf_lightning.data.images.decoder import check_damaged
from pmf_lightning.data.shards.writing.inputs import Inputs, Unreadable, record_keys
from pmf_lightning.data.sources.hf.columns import TableImages, check_classes, image_column, labels_of
from pmf_lightning.data.sources.hf.files import OpenTables, OptionNames, open_tables
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.errors import UserError

PREFIX = "hf:"  # of in=
OPTIONS = OptionNames(kind="in=hf", root=f"in={PREFIX}", prefix="", folder="in=<folder>")


def table_inputs(
    given: str, split: str, subset: str | None, image: str | None, label: str | None, unpacked: Path
) -> Inputs:
    """Return the images of ``given`` (hf:<folder, parquet file or owner/set>), copied into the folder ``unpacked``.

    ``split``, ``subset``, ``image`` and ``label`` are those of ``data=hf``, the last two the names of columns. It
    prints a summary. Raises UserError if the tables or columns cannot be used, or if the disk has no space for the
    copy.
    """
    tables = open_tables(given.removeprefix(PREFIX), subset, split, OPTIONS)
    column, labels = image_column(tables, image), labels_of(tables, label)
    check_classes(tables, label, labels)
    count = len(labels.labels)
    print(f"{counted(count, 'image')} of {describe_classes(labels.names)} in {given}, split {split}", flush=True)
    places, broken = _copied(tables, column, unpacked, given)
    rows = [row for row, place in enumerate(places) if place is not None]
    found = np.array([places[row] for row in rows], np.int64).reshape(-1, 3)
    names = [f"table-{number:05d}" for number in range(len(tables.parts))]
    return Inputs(
        root=tables.where,
        names=names,
        files=found[:, 0].copy(),
        starts=found[:, 1].copy(),
        sizes=found[:, 2].copy(),
        keys=record_keys(f"{split}-{row:08d}" for row in rows),
        labels=labels.labels[rows],
        class_names=labels.names,
        broken=broken,
        unpacked={name: str(unpacked / name) for name in names},
    )


def _copied(
    tables: OpenTables, column: str, unpacked: Path, given: str
) -> tuple[list[tuple[int, int, int] | None], list[Unreadable]]:
    """Copy the images of each table to a file; return table, first byte and bytes of each row, and the missing ones."""
    images = TableImages(tables, column)
    places: list[tuple[int, int, int] | None] = []
    broken: list[Unreadable] = []
    unpacked.mkdir(parents=True, exist_ok=True)
    room = int(0.9 * shutil.disk_usage(unpacked).free)
    with tqdm(total=images.first_rows[-1], desc="copying", unit="image", mininterval=0.5) as bar:
        for number, first in enumerate(images.first_rows[:-1]):
            with (unpacked / f"table-{number:05d}").open("wb") as target:
                for row in range(first, images.first_rows[number + 1]):
                    bar.update()
                    try:
                        content = _bytes(images.read(f"row {row}"))
                    except (OSError, ValueError) as error:
                        check_damaged(error, tables.where / f"row {row}")
                        places.append(None)
                        broken.append(Unreadable(f"row {row}", str(error), str(tables.where)))
                        continue
                    if (room := room - len(content)) < 0:
                        raise UserError(
                            f"in={given}: the disk of {unpacked.parent} has no space for a copy of its images; set out "
                            "to a larger one"
                        )
                    places.append((number, target.tell(), len(content)))
                    target.write(content)
    if len(broken) == len(places):
        raise UserError(f"in={given}: none of its {len(places):,} rows holds an image; name another image_column")
    return places, broken


def _bytes(image: Path | bytes) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image
