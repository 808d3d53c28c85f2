"""The columns of images and labels of tables: which they are, class names, and the encoded images."""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from pmf_lightning.data.images.labels import refuse_captions
from pmf_lightning.data.sources.hf.files import OpenTables, open_tables
from pmf_lightning.utils.errors import UserError, some_of, suggestions


class Labels(NamedTuple):
    """The names of the classes, and the label of every row."""

    names: list[str]
    labels: Int64[np.ndarray, " n"]


@lru_cache(maxsize=8)  # a configuration asks often, and a million labels take 0.3 s
def count_table_classes(root: str | None, subset: str | None, split: str, label_column: str | None) -> int:
    """Return the number of classes of ``data=hf``; raises UserError as ``labels_of`` does."""
    return len(labels_of(open_tables(root, subset, split), label_column).names)


def image_column(tables: OpenTables, chosen: str | None) -> str:
    """Return the name of the column of images; UserError if it is unknown, none, or not the only one."""
    option = f"{tables.options.prefix}image_column={'null' if chosen is None else chosen}"
    fitting = [name for name in tables.columns if _holds_images(tables, name)]
    if chosen is not None:
        _check_column(tables, "image_column", chosen)
        if chosen not in fitting:
            kind = tables.column_type(chosen)
            others = f"; columns of images are {some_of(fitting)}" if fitting else ""
            raise UserError(f"{option}: it holds no encoded images ({kind}){others}")
        return chosen
    if len(fitting) != 1:
        what = f"several columns hold images ({some_of(fitting)})" if fitting else "no column holds encoded images"
        raise UserError(f"{option}: {what}; {tables.where} has the columns {some_of(tables.columns, 20)}")
    return fitting[0]


def _holds_images(tables: OpenTables, name: str) -> bool:
    kind = str(tables.column_type(name))
    return kind.startswith(("binary", "large_binary")) or (kind.startswith("struct") and "bytes: " in kind)


def _check_column(tables: OpenTables, option: str, name: str) -> None:
    if name not in tables.columns:
        given = f"{tables.options.prefix}{option}={name}"
        raise UserError(f"{given}: {tables.where} has no such column; {suggestions(name, tables.columns)}")


def label_column(tables: OpenTables, chosen: str | None) -> str | None:
    """Return the name of the column of labels, None for one class; UserError if it is unknown or not the only one."""
    if chosen == "none":
        return None
    if chosen is not None:
        _check_column(tables, "label_column", chosen)
        return chosen
    found = [name for name in tables.columns if _class_names(tables, name) is not None]
    if len(found) > 1:
        option = f"{tables.options.prefix}label_column=null"
        raise UserError(f"{option}: several columns hold labels; name one of {some_of(found)}, or none")
    return found[0] if found else "label" if "label" in tables.columns else None


def _class_names(tables: OpenTables, column: str) -> list[str] | None:
    """Return the names of a column that the library datasets describes as ClassLabel."""
    about = tables.features.get(column)
    names = about.get("names") if isinstance(about, dict) and about.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if names else None


def labels_of(tables: OpenTables, chosen: str | None) -> Labels:
    """Return class names and labels; UserError for values that are no classes.

    Integers with names of ClassLabel are labels. Other integers and texts are classes in sorted order. Without a column
    all rows are one class.
    """
    column, rows = label_column(tables, chosen), sum(part.rows for part in tables.parts)
    option = f"{tables.options.prefix}label_column={column}"
    if column is None:
        return Labels([tables.where.name], np.zeros(rows, np.int64))
    values = [value for part in tables.parts for value in part.column(column).to_pylist()]
    names = _class_names(tables, column)
    if missing := sum(value is None for value in values):
        raise UserError(f"{option}: {missing:,} of {rows:,} rows have no label")
    if wrong := [value for value in values if not isinstance(value, int | str)]:
        raise UserError(
            f"{option}: {str(wrong[0])[:40]} is no class (an integer or a text); name another column, "
            "or none for one class"
        )
    if names is None or any(isinstance(value, str) for value in values):
        known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        place = {value: label for label, value in enumerate(known)}
        return Labels([str(value) for value in known], np.array([place[value] for value in values], np.int64))
    labels = np.array(values, np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        outside = labels[(labels < 0) | (labels >= len(names))]
        raise UserError(
            f"{option}: {len(outside):,} labels are out of range, such as {outside[0]} of "
            f"{len(names)} classes (-1 marks a split without labels); choose another split, or none for one class"
        )
    return Labels(names, labels)


def check_classes(tables: OpenTables, chosen: str | None, found: Labels) -> None:
    """Raise UserError if the values of the column of labels are captions or numbers, unless it is a ClassLabel."""
    column = label_column(tables, chosen)
    if column is not None and _class_names(tables, column) is None:
        refuse_captions(found.labels.tolist(), f"{tables.options.prefix}label_column={column}")


class TableImages:
    """The encoded images of a column, named by row, as ``decode_cache`` reads files."""

    def __init__(self, tables: OpenTables, column: str) -> None:
        self.root, self.tables, self.column = tables.where, tables, column
        self.first_rows = [0, *accumulate(part.rows for part in tables.parts)]

    def names(self) -> list[str]:
        """Return the name of every row."""
        return [f"row {row}" for row in range(self.first_rows[-1])]

    def read(self, name: str) -> Path | bytes:
        """Return an encoded image, or the path of its file, as sets of loose files on the hub have it.

        Raises ValueError if the cell holds none.
        """
        row = int(name.removeprefix("row "))
        part = bisect_right(self.first_rows, row) - 1
        cell: Any = self.tables.parts[part].cell(self.column, row - self.first_rows[part])
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content:
            return content
        path = Path(cell.get("path") or "" if isinstance(cell, dict) else "")
        if path.is_absolute() and path.is_file():
            return path
        raise ValueError("the cell holds no image; only its path is stored, or nothing")
