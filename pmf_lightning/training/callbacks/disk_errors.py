"""Keep training when writing logs, images or console output fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from tqdm.auto import tqdm

from pmf_lightning.utils.terminal import Unread


@contextmanager
def tolerate_disk_errors(what: str, again: str, quiet: bool = False) -> Iterator[None]:
    """Catch OSError in the block; print (unless ``quiet``) that ``what`` is not written, followed by ``again``."""
    try:
        yield
    except OSError as error:
        if not quiet:
            tqdm.write(f"{what} is not written ({error.strerror or error}); training goes on, {again}")


@contextmanager
def tolerate_output_errors() -> Iterator[None]:
    """Ignore failures to write to stdout and stderr, for example to a file on a full disk."""
    with redirect_stdout(_IgnoreWriteErrors(sys.stdout)), redirect_stderr(_IgnoreWriteErrors(sys.stderr)):
        yield


class _IgnoreWriteErrors:
    """A stream that ignores OSError and Unread."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, Unread):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, Unread):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
