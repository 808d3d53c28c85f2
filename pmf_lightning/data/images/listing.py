"""List the images below a folder, and every skipped file with a reason."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pmf_lightning.data.images.kinds import HIDDEN, is_hidden, is_image, no_image

DANGLING = "a link whose target is missing"
LOOP = "a link to a folder that contains it"
AGAIN = "a folder that is listed already under another name"
NO_FILE = "neither a file nor a folder"
MOST_SHOWN = 3  # names printed per reason
MOST_HIDDEN = 10_000  # limit for counting files in a hidden folder, which may contain large snapshots


class LeftOut(NamedTuple):
    """A skipped file or folder: path below the root (a folder ends in /), reason, and number of files."""

    name: str
    reason: str
    count: int = 1


@dataclass
class Listing:
    """Paths below a root, with slashes: ``images`` sorted folder by folder, and skipped files."""

    images: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def list_images(root: Path) -> Listing:
    """List the images at any depth, reading names only.

    Links to folders are followed. Each folder is listed once: under its own path if that is below the root, else under
    the first of its links. Hidden files and folders are skipped.
    """
    walk = _Walk(root)
    walk.enter("")
    while walk.links:
        waiting, walk.links = sorted(walk.links, key=_parts), []
        for link in waiting:
            walk.follow(link)
    walk.found.images.sort(key=_parts)
    walk.found.left_out.sort(key=lambda one: _parts(one.name))
    return walk.found


def reasons(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """Count the skipped files by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for one in left_out:
        counts[one.reason] += one.count
    return dict(counts.most_common())


def printable(text: str) -> str:
    """Return a path with undecodable bytes escaped, so that every terminal can print it."""
    return text.encode("utf-8", "backslashreplace").decode()


def describe_skipped(left_out: list[LeftOut]) -> str:
    """Return one line with the number of skipped files per reason, and the first few names."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(one.name)
    each = (f"{count:,} {reason}: {_few(names[reason])}" for reason, count in reasons(left_out).items())
    return "left out: " + "; ".join(each)


def _few(names: list[str]) -> str:
    return printable(", ".join(names[:MOST_SHOWN])) + ", ..." * (len(names) > MOST_SHOWN)


def describe_extensions(images: Iterable[str]) -> str:
    """Return the number of images per extension, in brackets; empty if all have the same extension."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in images)
    return f" ({', '.join(f'{n:,} {ending}' for ending, n in counts.most_common())})" if len(counts) > 1 else ""


class _Walk:
    def __init__(self, root: Path) -> None:
        self.root, self.found, self.links = os.fspath(root), Listing(), []
        self.seen: set[tuple[int, int]] = set()

    def enter(self, folder: str) -> None:
        """List a folder and the real folders below it; links to folders are queued."""
        waiting = [folder]
        while waiting:
            below = waiting.pop()
            path = os.path.join(self.root, below)
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in self.seen:
                    self.found.left_out.append(LeftOut(f"{below}/", AGAIN))
                    continue
                self.seen.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    waiting += [inner for entry in entries if (inner := self._add(entry, below)) is not None]
            except OSError as error:
                self.found.left_out.append(LeftOut(f"{below}/", f"a folder that cannot be read ({error.strerror})"))

    def follow(self, link: str) -> None:
        """List the target folder of a link."""
        path = os.path.join(self.root, link)
        target = os.path.join(os.path.realpath(path), "")
        around = (os.path.join(os.path.realpath(inner), "") for inner in (os.path.dirname(path), self.root))
        if any(inner.startswith(target) for inner in around):
            self.found.left_out.append(LeftOut(f"{link}/", LOOP))
        else:
            self.enter(link)

    def _add(self, entry: os.DirEntry, below: str) -> str | None:
        """Record one entry of a folder; return its path if it is a real folder."""
        name = f"{below}/{entry.name}" if below else entry.name
        if is_hidden(entry.name):
            folder = entry.is_dir(follow_symlinks=False)
            count = _files_in(entry.path) if folder else 1
            self.found.left_out.append(LeftOut(f"{name}/" if folder else name, HIDDEN, count))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.found.left_out.append(LeftOut(name, DANGLING))
        elif entry.is_dir():
            if not entry.is_symlink():
                return name
            self.links.append(name)
        elif not entry.is_file():
            self.found.left_out.append(LeftOut(name, NO_FILE))
        elif is_image(entry.name):
            self.found.images.append(name)
        else:
            self.found.left_out.append(LeftOut(name, no_image(entry.name)))
        return None


def _files_in(folder: str) -> int:
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if count >= MOST_HIDDEN:
            break
    return count


def _parts(name: str) -> list[str]:
    return name.split("/")
