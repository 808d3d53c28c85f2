"""End commands without a traceback, with the usual exit code, on a closed output pipe or Ctrl-C."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

UNREAD, INTERRUPTED = 141, 130  # exit codes of a program that SIGPIPE or SIGINT ends


class Unread(SystemExit):
    """The output pipe is closed, as with ``| head``. Not an Exception, so Hydra does not catch it."""


class _Stream:
    """Stream that raises Unread once its other end is closed, and then drops all output."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with _one_ending(self._stream):
            return self._stream.write(text)

    def flush(self) -> None:
        with _one_ending(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _one_ending(stream: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        closed = errno.EINVAL if os.name == "nt" else errno.EPIPE
        if not isinstance(error, BrokenPipeError) and error.errno != closed:
            raise
        _drop(stream)
        raise Unread(UNREAD) from None


def _drop(stream: Any) -> None:
    """Redirect the stream to the null device: Python flushes its buffer once more at exit."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _open_closed_streams() -> None:
    """Open the null device in place of streams that were closed at the start (``>&-``)."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def plain_ending() -> Iterator[None]:
    """Run a command: exit with 141 on a closed output pipe, and with 130 and one line on Ctrl-C."""
    _open_closed_streams()
    with redirect_stdout(_Stream(sys.stdout)), redirect_stderr(_Stream(sys.stderr)):
        try:
            yield
            _flush()
        except KeyboardInterrupt:
            with suppress(Unread):
                print("\ninterrupted", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)
        except SystemExit:
            with suppress(Unread):
                sys.stdout.flush()
            raise


def _flush() -> None:
    """Flush the output while an error, such as a full disk, can still be reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        print(f"error: the output cannot be written ({error.strerror or error})", file=sys.stderr)
        sys.exit(1)


def be_brief() -> None:
    """Print one line in place of a traceback on Ctrl-C during imports."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
