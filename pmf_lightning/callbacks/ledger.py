"""The log of a run: metrics.jsonl and metrics.csv always, Weights & Biases beside them when asked for."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Ledger(Logger):
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
        self._last: dict[str, Any] = {}  # the row that is written last, and where it begins in the file
        self._start = 0
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
        same = self._last.get("step") == row["step"]
        self._last = {**row, **{name: value for name, value in self._last.items() if same and name not in row}}
        with self.path.open("r+") as file:
            self._start = file.seek(self._start) if same else file.seek(0, os.SEEK_END)
            file.write(json.dumps(self._last) + "\n")  # over the shorter line: at no moment is there none
            file.truncate()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the CSV with every column that occurs."""
        rows = self.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        with self.path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, Any]]:
        """Read the log; a last line cut short by a kill is left out."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @rank_zero_only
    def _keep_until(self, step: int) -> None:
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        self.path.write_text("".join(kept))


def _plain(value: Any) -> float | None:
    """Return a number that JSON can hold; NaN and infinities become null."""
    number = float(value)
    return number if math.isfinite(number) else None
