"""A markdown table of finished runs, a row per arm: python experiments/table.py runs/patch_dimension KEY [KEY ...]

The KEYs (objective.prediction, data.resolution ...) name what tells the arms apart; the runs of an arm differ in their
seed. Each cell is the mean over the seeds with the smallest and the largest value. The squared errors are means over
the last tenth of the training steps.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from omegaconf import OmegaConf


def numbers(folder: Path) -> dict[str, float]:
    """Read what one run measured."""
    summary = json.loads((folder / "summary.json").read_text())
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "class accuracy": summary["class_accuracy"],
        "fd": summary["fd"],
        "fd of held-out images": summary["fd_floor"],
    }
    for name in sorted({name for row in logged for name in row if name.startswith("loss_") and "/" not in name}):
        values = [row[name] for row in logged if row.get(name) is not None]
        if values:
            last = values[-max(1, len(values) // 10) :]
            found[name] = sum(last) / len(last)
    return found


def cell(values: list[float]) -> str:
    """Mean and extremes; nothing where no run of the arm has it."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})"


def table(root: Path, keys: list[str]) -> str:
    """Return the table of all finished runs below ``root``."""
    arms = defaultdict(list)
    for path in sorted(root.glob("**/summary.json")):
        config = OmegaConf.load(path.parent / "config.yaml")
        arms[tuple(str(OmegaConf.select(config, key)) for key in keys)].append(numbers(path.parent))
    if not arms:
        raise SystemExit(f"{root}: no finished runs (no summary.json) there; give a folder of run directories")
    names = list(dict.fromkeys(name for runs in arms.values() for run in runs for name in run))
    lines = ["| " + " | ".join([*keys, "seeds", *names]) + " |", "|---" * (len(keys) + 1 + len(names)) + "|"]
    for arm, runs in sorted(arms.items()):
        cells = [cell([run[name] for run in runs if name in run]) for name in names]
        lines.append("| " + " | ".join([*arm, str(len(runs)), *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    print(table(Path(sys.argv[1]), sys.argv[2:]))
