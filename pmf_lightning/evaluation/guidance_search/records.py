"""What was measured, a file for each point, so that a search that was stopped goes on where it was."""

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
    """A measured point: its scores by name, network evaluations per image, and under which ``conditions``.

    ``conditions`` is everything besides the point that the numbers depend on: n, seed, protocol, extractor, reference,
    and the hash of the checkpoint. ``problem`` says why there are no scores.
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
        """The Frechet distance; None where the images could not be measured."""
        return self.scores.get("fid")

    def plain(self) -> dict[str, Any]:
        """Return what JSON holds."""
        return asdict(self)


class Records:
    """The folder of the measured points.

    What lies there under the same point and conditions is read once, at the beginning; ``add`` writes one more.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._known = {_key(record.point, record.conditions): record for record in _read(folder)}

    def find(self, point: SamplingSetting, conditions: Mapping[str, Any]) -> Record | None:
        """Return what is known of a point, or None."""
        return self._known.get(_key(point, conditions))

    def add(self, record: Record, write: bool = True) -> Record:
        """Keep a record, and write its file, whole or not at all; one process of several writes."""
        key = _key(record.point, record.conditions)
        self._known[key] = record
        if write:
            low, high = map(show, record.point.interval)
            point = record.point
            name = f"{point.ema}_omega{show(point.omega)}_{low}-{high}_{point.steps}x{point.method}_n{record.n}"
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / f"{name}_{key[:8]}.json") as partial:
                partial.write_text(json.dumps(record.plain(), indent=2) + "\n")
        return record


def _key(point: SamplingSetting, conditions: Mapping[str, Any]) -> str:
    numbers = [point.ema, *map(float, (point.omega, *point.interval)), point.steps, point.method]
    return digest(json.dumps(numbers), json.dumps(dict(conditions), sort_keys=True))


def _read(folder: Path) -> list[Record]:
    """Read the records of a folder; files that are none are left alone."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            stored = read_json(path)
            point = stored.pop("point")
            found.append(Record(SamplingSetting(**point | {"interval": tuple(point["interval"])}), **stored))
        except (ValueError, TypeError, KeyError):
            continue
    return found
