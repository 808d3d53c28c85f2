"""Find the files of a known set on this machine, or download them through torchvision."""

import os
from collections.abc import Sequence
from pathlib import Path

from pmf_lightning.data.sources.named.known import KnownSet
from pmf_lightning.utils.cache import cache_root, sole_writer
from pmf_lightning.utils.errors import UserError


def find(known: KnownSet, name: str, root: str | None, splits: Sequence[str], cache_dir: str | None) -> Path:
    """Return the folder with the files of the splits: in ``root``, or where they usually are.

    ``name`` is that of the data in the configuration. Raises UserError, which says where it looked and what to put
    there.
    """
    given = [] if root is None else [Path(root).expanduser()]
    for folder in _candidates(known, given, cache_dir):
        if known.find(folder, splits):
            return folder
    if given and not given[0].is_dir():
        raise UserError(f"data.root={root} is not a folder: set it to one, or leave it out; {_put(known)}")
    looked = ", ".join(map(str, [*given, *_usual(cache_dir), *_homes(known)]))
    raise UserError(f"data={name}: its files are not in {looked}; {_put(known)}, or set data.download=true")


def download(known: KnownSet, name: str, root: str | None, cache_dir: str | None) -> None:
    """Let torchvision download the set into ``root``, or into the cache; UserError if that fails.

    One process of a machine downloads, the others wait.
    """
    folder = cache_root(cache_dir) / _CACHED if root is None else Path(root).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder / known.torchvision):
            known.in_torchvision()(root=str(folder), download=True)
    except Exception as error:  # torchvision raises many: of the network, of checksums, of missing packages, of disks
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data.download=true: {name} cannot be downloaded to {folder} ({reason}); {_put(known)}"
        ) from error


_CACHED = "datasets"  # folder of downloads in the cache


def _candidates(known: KnownSet, given: Sequence[Path], cache_dir: str | None) -> list[Path]:
    """Return the folders that may hold the files: the given one itself too, since it was named."""
    below = [base / folder for base in [*given, *_usual(cache_dir)] for folder in known.folders]
    return [
        *below[: len(given) * len(known.folders)],
        *given,
        *below[len(given) * len(known.folders) :],
        *_homes(known),
    ]


def _usual(cache_dir: str | None) -> list[Path]:
    """Return the roots that are tried without ``data.root``: ./data as in torchvision's examples, and our cache."""
    return [Path("data"), cache_root(cache_dir) / _CACHED]


def _homes(known: KnownSet) -> list[Path]:
    return [Path(os.path.expanduser(home)) for home in known.homes]


def _put(known: KnownSet) -> str:
    return f"put {known.put} into a folder and set data.root to it"
