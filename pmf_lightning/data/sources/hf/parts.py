"""Tables with columns of images and labels, read without loading them as a whole."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

KEPT_GROUPS = 3  # row groups in memory: rows are read in order, by several threads


class Part(ABC):
    """One table; ``schema`` is pyarrow's, ``rows`` the number of rows."""

    schema: Any
    rows: int

    @classmethod
    @abstractmethod
    def open(cls, file: Path) -> "Part":
        """Open a file."""

    @abstractmethod
    def column(self, name: str) -> Any:
        """Return a whole column, such as that of the labels."""

    @abstractmethod
    def cell(self, name: str, row: int) -> Any:
        """Return one value as a Python object."""


class ArrowPart(Part):
    """A table in memory, or mapped into it."""

    def __init__(self, table: Any) -> None:
        self.table, self.schema, self.rows = table, table.schema, table.num_rows

    @classmethod
    def open(cls, file: Path) -> "ArrowPart":
        """Map an Arrow file of the library datasets (a stream) into memory."""
        import pyarrow as pa  # imported here, because it is an extra

        return cls(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())

    def column(self, name: str) -> Any:
        """Return a whole column."""
        return self.table[name]

    def cell(self, name: str, row: int) -> Any:
        """Return one value."""
        return self.table[name][row].as_py()


class ParquetPart(Part):
    """A parquet file, of which a few row groups are in memory at a time."""

    def __init__(self, file: Any) -> None:
        self.file, self.schema, self.rows = file, file.schema_arrow, file.metadata.num_rows
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.first_rows = [0, *accumulate(sizes)]
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, file: Path) -> "ParquetPart":
        """Open a parquet file, reading its index only."""
        from pyarrow import parquet  # imported here, because it is an extra

        return cls(parquet.ParquetFile(file, memory_map=True))

    def column(self, name: str) -> Any:
        """Return a whole column."""
        return self.file.read(columns=[name])[name]

    def cell(self, name: str, row: int) -> Any:
        """Return one value."""
        group = bisect_right(self.first_rows, row) - 1
        with self._lock:
            if (name, group) not in self._groups:
                self._groups[name, group] = self.file.read_row_group(group, columns=[name])[name]
                while len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            column = self._groups[name, group]
        return column[row - self.first_rows[group]].as_py()
