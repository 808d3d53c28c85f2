"""WebDataset tars as input: one walk over their headers finds every image, which is read by its place later."""

import glob
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from pmf_lightning.data.folder import ENDINGS
from pmf_lightning.errors import UserError
from pmf_lightning.shards.inputs import Inputs, Unreadable
from pmf_lightning.shards.keys import record_keys
from pmf_lightning.shards.processes import Tick, in_processes

LABEL = "cls"
MOST_DIGITS = 9  # of a label


@dataclass
class TarListing:
    """What one tar holds: key, label, offset and size of every image, and what could not be listed."""

    file: str
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    broken: list[Unreadable] = field(default_factory=list)


def find_tars(pattern: str) -> list[Path]:
    """Return the tars that ``pattern`` names: a file, a folder of tars, a glob, or a range in braces.

    ``{000000..000146}`` counts. Sorted by name; UserError for none, for missing ones and for compressed ones.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif "{" in pattern:
        found = sorted(Path(name).expanduser() for name in _expanded(pattern))
    else:
        found = sorted(Path(name) for name in glob.glob(str(path)))
    if not found:
        raise UserError(f"in={pattern}: no such file or folder; give class folders, or WebDataset tars")
    for tar in found:
        if not tar.is_file():
            raise UserError(f"in={pattern}: {tar} is missing ({len(found)} tars in all); fetch it or name fewer")
        if tar.suffix != ".tar":
            raise UserError(
                f"in={pattern}: {tar} is no plain .tar; unpack a compressed one first, and give images as class folders"
            )
    if len({tar.name for tar in found}) < len(found):
        raise UserError(f"in={pattern}: two tars have the same name; bring all into one folder")
    return found


def _expanded(pattern: str) -> list[str]:
    try:
        return expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"in={pattern}: {error}; write a range as {{000000..000146}}") from error


def tar_inputs(
    tars: list[Path], classes: int | None, names_file: str | None, workers: int, progress: Callable[[int], None]
) -> Inputs:
    """List the images of ``tars``, whose records hold an image and its label as ``<key>.jpg`` and ``<key>.cls``.

    ``classes`` None: one more than the greatest label. ``names_file`` has a class name in each line. ``progress`` gets
    the records seen. Raises UserError where no record can be used, or one has a label beyond ``classes``.
    """
    listings = sorted(in_processes(list_tar, tars, workers, progress), key=lambda listing: listing.file)
    broken = [unreadable for listing in listings for unreadable in listing.broken]
    keys = record_keys(key for listing in listings for key in listing.keys)
    if not keys:
        why = f", first {broken[0].file}: {broken[0].reason}" if broken else ""
        raise UserError(f"in={tars[0]}: no image with a label ({', '.join(ENDINGS)} beside .{LABEL}){why}")
    places = np.array([place for listing in listings for place in listing.places], np.int64)
    labels = places[:, 0].copy()
    return Inputs(
        root=tars[0].parent if len({tar.parent for tar in tars}) == 1 else Path("/"),
        names=_names(tars),
        files=np.repeat(np.arange(len(listings)), [len(listing.keys) for listing in listings]),
        starts=places[:, 1].copy(),
        sizes=places[:, 2].copy(),
        keys=keys,
        labels=labels,
        class_names=_class_names(labels, keys, classes, names_file),
        broken=broken,
    )


def _names(tars: list[Path]) -> list[str]:
    """Name the tars, in the order of their listings, below their folder, or from the root of all if there are more."""
    tars = sorted(tars, key=lambda tar: tar.name)
    one = len({tar.parent for tar in tars}) == 1
    return [tar.name if one else str(tar.absolute().relative_to("/")) for tar in tars]


def _class_names(labels: np.ndarray, keys: list[str], classes: int | None, names_file: str | None) -> list[str]:
    names = None
    if names_file is not None:
        try:
            names = Path(names_file).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"class_names={names_file}: cannot be read ({error}); one name a line") from error
    count = classes if classes is not None else len(names) if names is not None else int(labels.max()) + 1
    worst = int(labels.argmax())
    if labels[worst] >= count:
        raise UserError(f"classes={count}, but {keys[worst]} has the label {labels[worst]}; raise classes")
    if names is not None and len(names) != count:
        raise UserError(f"class_names={names_file}: {len(names)} names for {count} classes; give one in each line")
    return names or [str(label) for label in range(count)]


def list_tar(path: Path, tick: Tick) -> TarListing:
    """Walk over the headers of one tar; what cannot be used is listed with the reason."""
    listing = TarListing(path.name)
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _records(tar):
                tick()
                _add(listing, tar, key, members)
            if tar.offset >= path.stat().st_size:
                raise tarfile.ReadError("no mark at its end: it was cut off")
    except (tarfile.TarError, OSError) as error:
        reason = f"the tar cannot be read any further ({type(error).__name__}: {error})"
        listing.broken.append(Unreadable(path.stem, reason, path.name))
    return listing


def _records(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield what stands together under one key, as WebDataset does: members by their ending."""
    current, members = None, {}
    for member in tar:
        tar.members = []  # else the headers of the whole file stay in memory
        key, ending = base_plus_ext(member.name)
        if not member.isfile() or key is None or member.name.rpartition("/")[2].startswith(("_", ".")):
            continue
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[ending.lower()] = member
    if members:
        yield current, members


def _add(listing: TarListing, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> None:
    images = [member for ending, member in members.items() if f".{ending}" in ENDINGS]
    if len(images) != 1 or LABEL not in members:
        reason = f"it holds {', '.join(members)}: one image ({', '.join(ENDINGS)}) and .{LABEL} are needed"
        listing.broken.append(Unreadable(key, reason, listing.file))
        return
    tar.fileobj.seek(members[LABEL].offset_data)
    content = tar.fileobj.read(min(members[LABEL].size, 100))
    if not content.strip().isdigit() or len(content.strip()) > MOST_DIGITS:
        listing.broken.append(Unreadable(key, f"its label is {content[:20]!r}, no number", listing.file))
        return
    listing.keys.append(key)
    listing.places.append((int(content), images[0].offset_data, images[0].size))
