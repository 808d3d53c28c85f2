"""train.log of a run directory: what the run printed, with warnings and the error that ended it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from pmf_lightning.training.run_dir import first_process
from pmf_lightning.utils.provenance import command_line
from pmf_lightning.utils.terminal import Unread

NAME = "train.log"


class RunLog:
    """Copies what the first process of a run prints to a file, once the run directory is known.

    Lines that came before are copied too. Of lines that overwrite each other, such as a progress bar, the last state
    is written. Failures to write are ignored, as are those of the streams themselves, for example on a full disk.
    """

    def __init__(self) -> None:
        self._before: list[str] = []
        self._file: TextIO | None = None

    def open(self, folder: Path) -> None:
        """Append to the log of ``folder``: a line with time and command, then all lines so far."""
        if self._file is None and first_process():
            with suppress(OSError):
                self._file = (folder / NAME).open("a", buffering=1, encoding="utf-8")
            self._before.insert(0, f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {command_line()}")
            for line in self._before:
                self.add(line)
        self._before = []

    def add(self, line: str) -> None:
        """Write a line, or keep it until the log is open."""
        if self._file is None:
            self._before.append(line)
            return
        with suppress(OSError):
            self._file.write(f"{line}\n")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context manager that records stdout, stderr and the message of an exception, and closes the log."""
        try:
            with redirect_stdout(_Copied(sys.stdout, self)), redirect_stderr(_Copied(sys.stderr, self)):
                yield
        except Exception as error:
            self.add(f"error: {type(error).__name__}: {' '.join(str(error).split())}")
            raise
        finally:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
            self._file, self._before = None, []


class _Copied:
    """A stream whose complete lines also go to a RunLog; it ignores OSError and Unread."""

    def __init__(self, stream: Any, log: RunLog):
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        with suppress(OSError, Unread):
            self._stream.write(text)
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            if shown := line.rpartition("\r")[2].rstrip():
                self._log.add(shown)
        self._line = rest[rest.rfind("\r") + 1 :]
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, Unread):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
