"""Results of a guidance search, one file per sampling setting, from which a stopped search resumes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pmf_lightning.evaluation.guidance_search.space import SamplingSetting, show
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write, digest


@dataclass(frozen=True)
class Record:
    """Result at one point: scores by name, network evaluations per image, seconds, and the ``conditions``.

    ``conditions`` is everything else that the scores depend on: n, seed, protocol, extractor, reference, and the hash
    of the checkpoint. ``problem`` is the reason if there are no scores.
    """

    point: SamplingSetting
    conditions: Mapping[str, Any]
    scores: Mapping[str, Any]
    nfe: int
    seconds: float
    problem: str | None = None

    @property
    def n(self) -> int:
        """Number of images."""
        return self.conditions["n"]

    @property
    def fid(self) -> float | None:
        """The Frechet distance, None if the images could not be measured."""
        return self.scores.get("fid")

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


class Records:
    """Folder of records, which are read once at construction; ``add`` writes a new one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known = {_key(record.point, record.conditions): record for record in _read(folder)}

    def find(self, point: SamplingSetting, conditions: Mapping[str, Any]) -> Record | None:
        """Return the record of a point under the same conditions, or None."""
        return self._known.get(_key(point, conditions))

    def add(self, record: Record, write: bool = True) -> Record:
        """Store a record and, with ``write`` (set on one rank only), write its file atomically."""
        key = _key(record.point, record.conditions)
        self._known[key] = record
        if write:
            low, high = map(show, record.point.interval)
            point = record.point
            name = f"{point.ema}_omega{show(point.omega)}_{low}-{high}_{point.steps}x{point.sampler}_n{record.n}"
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / f"{name}_{key[:8]}.json") as partial:
                partial.write_text(json.dumps(record.plain(), indent=2) + "\n")
        return record


def _key(point: SamplingSetting, conditions: Mapping[str, Any]) -> str:
    numbers = [point.ema, *map(float, (point.omega, *point.interval)), point.steps, point.sampler]
    return digest(json.dumps(numbers), json.dumps(dict(conditions), sort_keys=True))


def _read(folder: Path) -> list[Record]:
    """Read the records of a folder; other files are ignored."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            stored = read_json(path)
            point = stored.pop("point")
            changes = {"interval": tuple(point["interval"]), "sampler": point.pop("method", point.get("sampler"))}
            found.append(Record(SamplingSetting(**point | changes), **stored))
        except (ValueError, TypeError, KeyError):
            continue
    return found
