"""Names of records: those of the files they come from, fit for WebDataset and no two alike."""

import hashlib
from collections.abc import Iterable

LONGEST = 90  # bytes: with its ending a name stays within the 100 of the plainest tar header


def record_keys(names: Iterable[str]) -> list[str]:
    """Return a key for every name, a path without its ending, in order.

    WebDataset takes what follows the first dot for an ending, so dots become underscores, as does what cannot be
    printed; names that are too long keep their beginning and get a digest. A key that was given already gets "-2",
    "-3", ... behind it: keys depend on the names and their order alone.
    """
    keys: dict[str, None] = {}  # keeps the order
    for name in names:
        base = key = _cleaned(name)
        number = 1
        while key in keys:
            number += 1
            key = f"{base}-{number}"
        keys[key] = None
    return list(keys)


def _cleaned(name: str) -> str:
    key = name.replace(".", "_").replace("\\", "_").strip("/")
    if not key.isprintable():
        key = "".join(letter if letter.isprintable() else "_" for letter in key)
    if len(key.encode()) <= LONGEST - 8:  # room for a number
        return key
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"{key.encode()[:50].decode(errors='ignore')}-{digest}"
