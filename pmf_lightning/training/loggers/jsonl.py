"""The log of a run: metrics.jsonl and metrics.csv always, Weights & Biases beside them when asked for."""

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
    """Writes one JSON object per logged step, with the images seen; the CSV follows at the end.

    Log calls of the same step share a row; the numbers of the last call, Lightning's own with the losses, stand first.

    Args:
        folder: the run directory.
        batch: images per optimiser step, over all devices.
        first_step: step of the checkpoint that the run goes on from; later rows of an earlier session are dropped,
            since training will write them again.
    """

    def __init__(self, folder: Path, batch: int, first_step: int):
        super().__init__()
        self.path, self.batch = Path(folder) / "metrics.jsonl", batch
        self._tail: list[dict[str, Any]] = []  # the last row, after those before it that the disk refused
        self._start, self._written = 0, True  # where they begin in the file; whether they are in it
        self._keep_until(first_step)

    @property
    def name(self) -> str:
        """Nothing: the files lie in the run directory itself."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: a run directory is one version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml lies beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. Lightning counts steps from 0: row n describes the step that made the count n."""
        row = {"step": step + 1, "images": (step + 1) * self.batch}
        row |= {name: _plain(value) for name, value in metrics.items() if name != "epoch"}
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
            tolerate_disk_errors(str(self.path), "rows are kept for later", quiet=refused),
            self.path.open("r+") as file,
        ):
            file.seek(self._start)
            file.write(text)  # over the shorter line: at no moment is there none
            file.truncate()
            file.flush()
            self._written = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV with every column that occurs."""
        if not self._written:
            self._write()
        rows = self.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        path = self.path.with_suffix(".csv")
        with tolerate_disk_errors(str(path), f"{self.path.name} has it all"), path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, Any]]:
        """Read the log; a last line cut short by a kill is left out."""
        if not self.path.exists():
            return []
        return [row for row in read_rows(self.path) if type(row.get("step")) is int]

    @rank_zero_only
    def _keep_until(self, step: int) -> None:
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        with atomic_write(self.path) as draft:
            draft.write_text("".join(kept))


def _plain(value: Any) -> float | None:
    """Return a number that JSON can hold; NaN and infinities become null."""
    number = float(value)
    return number if math.isfinite(number) else None
