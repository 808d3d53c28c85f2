"""Positional reads from many files, with a limited number of open descriptors, which are never pickled."""

import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MOST_OPEN = 128  # per process: far below the usual limit of 1,024, above the shards of most sets


class OpenFiles:
    """Reads ``size`` bytes at ``offset`` of files given by index; not thread-safe.

    Files are opened on demand, and the least recently used one is closed above ``most_open``. Descriptors are excluded
    from pickles and copies. A forked process shares the descriptors of its parent, which is safe, since reads do not
    depend on the file position.
    """

    def __init__(self, paths: list[Path], most_open: int = MOST_OPEN):
        self.paths, self.most_open = paths, most_open
        self._open: OrderedDict[int, int] = OrderedDict()  # file -> descriptor, the one used last at the end

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Return the bytes, fewer if the file ends early; OSError if a second attempt fails too.

        Network file systems may invalidate files that were open for days; reopening helps.
        """
        try:
            return self._read(file, offset, size)
        except OSError:
            self._close(file)
            return self._read(file, offset, size)

    def announce(self, places: Iterable[tuple[int, int, int]]) -> None:
        """Advise the system to prefetch (file, offset, size) ranges into its page cache."""
        if not hasattr(os, "posix_fadvise"):  # optional: without it there is no prefetching
            return
        for file, offset, size in places:
            try:
                os.posix_fadvise(self._descriptor(file), offset, size, os.POSIX_FADV_WILLNEED)
            except OSError:
                self._close(file)  # the read will raise the error

    def close(self) -> None:
        """Close all files; they are reopened on demand."""
        for file in list(self._open):
            self._close(file)

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def _read(self, file: int, offset: int, size: int) -> bytes:
        descriptor, pieces, missing = self._descriptor(file), [], size
        while missing and (piece := _read_at(descriptor, missing, offset + size - missing)):
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _descriptor(self, file: int) -> int:
        if file in self._open:
            self._open.move_to_end(file)
        else:
            while len(self._open) >= self.most_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[file] = os.open(self.paths[file], os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return self._open[file]

    def _close(self, file: int) -> None:
        if file in self._open:
            with suppress(OSError):  # an invalidated descriptor cannot be closed
                os.close(self._open.pop(file))


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # safe on Windows, where processes share no descriptors
    return os.read(descriptor, size)
