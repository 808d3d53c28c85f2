"""Keep training when writing logs or images fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def tolerate_disk_errors(what: str, again: str, quiet: bool = False) -> Iterator[None]:
    """Catch OSError in the block; print (unless ``quiet``) that ``what`` is not written, followed by ``again``."""
    try:
        yield
    except OSError as error:
        if not quiet:
            tqdm.write(f"{what} is not written ({error.strerror or error}); training continues, {again}")
