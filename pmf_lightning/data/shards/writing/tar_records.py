"""List the images of a tar, with locations and labels, in one pass over its headers."""

import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from webdataset.tariterators import base_plus_ext

from pmf_lightning.data.images.kinds import HIDDEN, endings, is_hidden, no_image
from pmf_lightning.data.images.labels import class_name, value_of
from pmf_lightning.data.images.listing import NO_FILE, LeftOut
from pmf_lightning.data.shards.writing.inputs import Unreadable
from pmf_lightning.data.shards.writing.processes import Tick
from pmf_lightning.data.shards.writing.tar_files import compression, is_tar, unpack
from pmf_lightning.utils.bounded_files import open_tar, parse_json

LABEL = "cls"
MOST_JSON = 2**24  # bytes of a JSON object beside an image
MOST_DIGITS = 18  # largest number of digits of a label
META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset reserves
RESERVED = "a name that WebDataset reserves (__name__)"
LINK = "a link inside the tar"
NESTED = "a tar inside the tar that cannot be read in place: unpack it"


class Bare(NamedTuple):
    """An image without a label: its name without extension, its nested tar or "", its offset and size in bytes."""

    name: str
    inner: str
    start: int
    size: int


@dataclass
class TarListing:
    """Contents of one tar: ``keys``, and ``places`` (label, offset, size), of images; ``broken`` and skipped entries.

    ``bare`` has the images without labels. ``companions`` is True if records have members other than image and label.
    ``plain`` is the path of the uncompressed copy if the tar is compressed. By another rule than "auto" the labels in
    ``places`` are 0 and ``classes`` has the names of the classes; ``example`` is the first JSON object.
    """

    file: str
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    bare: list[Bare] = field(default_factory=list)
    broken: list[Unreadable] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    companions: bool = False
    plain: str | None = None
    classes: list[str] = field(default_factory=list)
    example: Mapping[str, Any] | None = None


class TarTask(NamedTuple):
    """A tar to list, the folder to unpack it in if it is compressed, and the rule of labels: auto, none, json:<key>."""

    path: Path
    unpacked: Path
    rule: str = "auto"


def list_tar(task: TarTask, tick: Tick) -> TarListing:
    """List one tar by its headers; unusable entries are listed with the reason."""
    path, listing, damage = task.path, TarListing(task.path.name), None
    try:
        if compression(path) is not None:
            path, damage = unpack(path, task.unpacked)
            listing.plain = str(path)
        with open_tar(path) as tar:
            walk = _Walk(listing, tick, task.rule)
            try:
                walk.over(tar, "", 0)
            finally:
                walk.finish()
            if tar.offset >= path.stat().st_size:
                raise tarfile.ReadError("no end marker: it is truncated")
    except (tarfile.TarError, OSError) as error:
        reason = f"the tar cannot be read any further ({damage or f'{type(error).__name__}: {error}'})"
        listing.broken.append(Unreadable(task.path.stem, reason, listing.file))
    return listing


def needed(what: str) -> str:
    """Return the reason why an entry is not a record."""
    return f"it holds {what}: one image and .{LABEL} are needed"


class _Walk:
    """Groups the members of a tar into records, as WebDataset does: consecutive members of the same name.

    Image and label of the same name are also matched if they are not consecutive, for instance if all images precede
    all labels. A name that occurs twice gives two records.
    """

    def __init__(self, listing: TarListing, tick: Tick, rule: str = "auto") -> None:
        self.listing, self.tick, self.rule = listing, tick, rule
        self.label = "json" if rule.startswith("json:") else LABEL  # extension of the labels
        self.group: dict[str, tarfile.TarInfo] = {}
        self.key = ""
        self.images: dict[str, list[tuple[Bare, str]]] = {}  # images without label so far, with extension
        self.labels: dict[str, list[int | bytes]] = {}  # labels without image so far
        self.others: Counter[str] = Counter()

    def over(self, tar: tarfile.TarFile, inner: str, base: int) -> None:
        """Process all members; ``base`` is the offset of a nested tar."""
        for member in tar:
            tar.members = []  # otherwise the headers of the full file stay in memory
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if (reason := _unusable(member, name)) is not None:
                self.listing.left_out.append(LeftOut(f"{self.listing.file}/{inner}{'/' * bool(inner)}{name}", reason))
            elif is_tar(name):
                self._close(tar, inner, base)
                self._nested(tar, member, name, inner)
            else:
                key, ending = base_plus_ext(name)
                ending = (ending or "").lower()
                if key is None or not ending:
                    self.others[no_image(name.rpartition("/")[2])] += 1
                    continue
                if key != self.key or ending in self.group:
                    self._close(tar, inner, base)
                self.key = key
                self.group[ending] = member
        self._close(tar, inner, base)

    def _nested(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, inner: str) -> None:
        """Process a nested tar."""
        stem, ending = name.rpartition("/")[2].rsplit(".", 1)
        if inner or ending.lower() != "tar":
            self.listing.left_out.append(LeftOut(f"{self.listing.file}/{inner}{'/' * bool(inner)}{name}", NESTED))
            return
        try:
            with open_tar(Path(name), tar.extractfile(member)) as opened:
                self.over(opened, stem, member.offset_data)
        except (tarfile.TarError, OSError) as error:
            reason = f"the tar inside the tar cannot be read any further ({type(error).__name__}: {error})"
            self.listing.broken.append(Unreadable(name, reason, self.listing.file))
            self.group = {}  # the record at its end is cut off

    def _close(self, tar: tarfile.TarFile, inner: str, base: int) -> None:
        """Finish the current group of members."""
        group, self.group = self.group, {}
        if not group:
            return
        self.tick()
        plain = [ending for ending in group if f".{ending}" in endings()]
        dotted = [ending for ending in group if f".{ending.rpartition('.')[2]}" in endings() and "." in ending]
        if not plain and dotted and (len(dotted) == 1 or f"{dotted[0].rpartition('.')[0]}.{self.label}" in group):
            self._split(tar, group, dotted, inner, base)  # names with dots, such as photo.v1.jpg
            return
        if self.rule != "auto":
            self._by_rule(tar, group, plain, inner, base)
            return
        if len(plain) > 1 and LABEL in group:
            self._broken(self.key, needed(", ".join(group)))
            return
        where = f"{inner}/{self.key}" if inner else self.key
        for ending in plain:
            member = group.pop(ending)
            bare = Bare(self.key, inner, base + member.offset_data, member.size)
            self.images.setdefault(where, []).append((bare, ending))
        if LABEL in group:
            self.labels.setdefault(where, []).append(_label(tar, group.pop(LABEL)))
        if plain and group:
            self.listing.companions = True
        for ending in group:
            self.others[f"another part of a record (.{ending})" if plain else no_image(f"x.{ending}")] += 1
        self._pair(where)

    def _split(self, tar: tarfile.TarFile, group: dict, dotted: list[str], inner: str, base: int) -> None:
        """Split a group whose names have dots before the extension into one record per name."""
        key = self.key
        for ending in dotted:
            stem, _, last = ending.rpartition(".")
            own = {last: group.pop(ending)}
            for name in (f"{stem}.{self.label}", self.label):
                if name in group:
                    own[self.label] = group.pop(name)
                    break
            self.key, self.group = f"{key}.{stem}", own
            self._close(tar, inner, base)
        for ending in group:
            self.others[f"another part of a record (.{ending})"] += 1

    def _by_rule(self, tar: tarfile.TarFile, group: dict, plain: list[str], inner: str, base: int) -> None:
        """Make records of the images of a group, with the class that the JSON object beside them states."""
        found: str | None = ""
        if self.rule != "none" and plain:
            content = _json(tar, group.pop("json")) if "json" in group else None
            self.listing.example = self.listing.example or content
            found = class_name(value_of(content, self.rule.removeprefix("json:")))
        for ending in plain:
            member, where = group.pop(ending), f"{inner}/{self.key}" if inner else self.key
            if found is None:
                self._broken(where, f"no class by {self.rule}")
                continue
            self.listing.keys.append(where)
            self.listing.places.append((0, base + member.offset_data, member.size))
            self.listing.classes.append(found)
        for ending in group:
            self.others[f"another part of a record (.{ending})" if plain else no_image(f"x.{ending}")] += 1

    def _pair(self, where: str) -> None:
        """Make a record of an image and a label of the same name."""
        if self.images.get(where) and self.labels.get(where):
            (bare, _), label = self.images[where].pop(0), self.labels[where].pop(0)
            for waiting in (self.images, self.labels):
                if not waiting[where]:
                    del waiting[where]
            if isinstance(label, bytes):
                self._broken(where, f"its label is {label[:20]!r}, not an integer of 0 or more")
                return
            self.listing.keys.append(where)
            self.listing.places.append((label, bare.start, bare.size))

    def _broken(self, key: str, reason: str) -> None:
        self.listing.broken.append(Unreadable(key, reason, self.listing.file))

    def finish(self) -> None:
        """List unmatched labels and images; images are ``bare`` if the tar has no records, else broken."""
        for where, labels in self.labels.items():
            for _ in labels:
                self._broken(where, needed(LABEL))
        if self.listing.keys:
            for where, images in self.images.items():
                for _, ending in images:
                    self._broken(where, needed(ending))
        else:
            self.listing.bare += [bare for images in self.images.values() for bare, _ in images]
        file = self.listing.file
        self.listing.left_out += [LeftOut(file, reason, count) for reason, count in self.others.items()]


def _unusable(member: tarfile.TarInfo, name: str) -> str | None:
    if any(map(is_hidden, name.split("/"))):
        return HIDDEN
    if META.match(name):
        return RESERVED
    if member.issym() or member.islnk():
        return LINK
    return None if member.isfile() and not member.issparse() else NO_FILE


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Mapping[str, Any] | None:
    """Return the JSON object of a member, None if it is none."""
    if member.size > MOST_JSON:
        return None
    tar.fileobj.seek(member.offset_data)
    try:
        content = parse_json(tar.fileobj.read(member.size).decode())
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int | bytes:
    """Return the number in a label, or its first bytes if it is not a number."""
    tar.fileobj.seek(member.offset_data)
    content = tar.fileobj.read(min(member.size, 100)).strip()
    return int(content) if content.isdigit() and len(content) <= MOST_DIGITS else content
