"""Logger that writes metrics.jsonl, and metrics.csv at the end of the run."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pmf_lightning.training.callbacks.disk_errors import tolerate_disk_errors
from pmf_lightning.utils.bounded_files import read_rows
from pmf_lightning.utils.cache import atomic_write


class JSONLLogger(Logger):
    """Writes one JSON object per logged step, with the images seen, and a CSV file at the end.

    Log calls of the same step share a row. The numbers of the last call (Lightning's, with the losses) come first.

    Args:
        folder: the run directory.
        batch: images per optimiser step, over all devices.
        first_step: step of the checkpoint that the run resumes. Later rows of an earlier session are dropped, since
            training writes them again.
    """

    def __init__(self, folder: Path, batch: int, first_step: int):
        super().__init__()
        self.path, self.batch = Path(folder) / "metrics.jsonl", batch
        self._tail: list[dict[str, Any]] = []  # the last row, after earlier rows that could not be written
        self.latest: dict[str, tuple[int, float | None]] = {}  # name -> step and value, of this session
        self._start, self._written = 0, True  # their offset in the file; whether they are written
        self._keep_until(first_step)

    @property
    def name(self) -> str:
        """Empty: the files are in the run directory itself."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory; Lightning's callbacks and profilers write there."""
        return str(self.path.parent)

    @property
    def version(self) -> str:
        """Empty: a run directory is one version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml is next to the log."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. Lightning counts steps from 0; row n describes the n-th step."""
        if step is None:  # of a user's callback
            step = self._tail[-1]["step"] - 1 if self._tail else 0
        row = {"step": step + 1, "images": (step + 1) * self.batch}
        numbers = {name: _plain(value) for name, value in metrics.items() if name != "epoch"}
        self.latest |= {name: (step + 1, value) for name, value in numbers.items()}
        row |= numbers
        if self._tail and self._tail[-1]["step"] == row["step"]:
            known = self._tail.pop()
            row |= {name: value for name, value in known.items() if name not in row}
        elif self._written:
            self._start, self._tail = self.path.stat().st_size, []
        self._tail.append(row)
        self._write()

    def _write(self) -> None:
        refused, self._written = not self._written, False
        text = "".join(json.dumps(row) + "\n" for row in self._tail)
        with (
            tolerate_disk_errors(str(self.path), "rows are buffered and written later", quiet=refused),
            self.path.open("r+") as file,
        ):
            file.seek(self._start)
            file.write(text)  # overwrites the shorter line, so that the file never lacks it
            file.truncate()
            file.flush()
            self._written = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV with all columns of the log."""
        if not self._written:
            self._write()
        rows = self.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        path = self.path.with_suffix(".csv")
        with tolerate_disk_errors(str(path), f"{self.path.name} has all rows"), path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, Any]]:
        """Read the log without a last line that a kill truncated."""
        if not self.path.exists():
            return []
        return [row for row in read_rows(self.path) if type(row.get("step")) is int]

    @rank_zero_only
    def _keep_until(self, step: int) -> None:
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        with atomic_write(self.path) as draft:
            draft.write_text("".join(lines))


def _plain(value: Any) -> float | None:
    """Return a float for JSON; NaN and infinities become None (null)."""
    number = float(value)
    return number if math.isfinite(number) else None
