"""Measure the memory of training on a CPU beside its count: python scripts/measure_memory.py OUT.json [name ...]

Every preset trains a few steps in a process of its own. "peak_mb" is the peak resident memory of the process and
"grown_mb" that above its memory before training. Counted by info are "counted_mb", the tensors of a step, and
"process_mb", with what the C library keeps. Names choose presets; the large ones need 8 GB and minutes.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

LARGE = ["data=shapes", "data.resolution=256", "batch=2", "steps=2"]
QUEUES = ["queues.positives=2", "queues.negatives=2"]
CASES = {
    **{model: [f"model={model}", "steps=20"] for model in ("pmf_digits", "imf_digits", "jit_tiny", "drifting_tiny")},
    "pmf_b16": ["model=pmf_b16", "perceptual=none", *LARGE],
    "imf_b16": ["model=imf_b16", *LARGE],
    "jit_b16": ["model=jit_b16", *LARGE],
    "drifting_b16": [
        *("model=drifting_b16", "drift_features=raw", "objective.samples_per_label=2", *QUEUES),
        *(*LARGE[:2], "batch=4", LARGE[3]),
    ],
}
CHILD = """
import json, sys
from pathlib import Path

from pmf_lightning import compose
from pmf_lightning.profiling.model_facts import find_facts
from pmf_lightning.train import train

def resident(key):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

cfg = compose(sys.argv[1:])
counted = find_facts(cfg).memory
before = resident("VmRSS")
train(cfg)
peak = resident("VmHWM")
mib = 2**20
print("PEAK", json.dumps({
    "batch": cfg.batch, "peak_mb": round(peak), "grown_mb": round(peak - before),
    "counted_mb": round(counted.peak / mib), "process_mb": round(counted.process / mib),
}))
"""


def measured(overrides: list[str]) -> dict[str, int]:
    """Train a few steps in a process of its own; return its batch, and measured and counted memory in 2^20 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*overrides, "metrics=none", "sample_grid.enabled=false", f"run_dir={folder}/run"]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("PEAK "))
    return json.loads(line.removeprefix("PEAK "))


def main(out: str, *names: str) -> None:
    """Write the numbers of the named cases, all by default, with the versions they were measured with."""
    import torch

    facts = {"what": "memory of a training process in MB (2^20 bytes)", "machine": platform.machine()}
    facts |= {"python": platform.python_version(), "torch": torch.__version__}
    found = {name: measured(CASES[name]) for name in names or CASES}
    Path(out).write_text(json.dumps({**facts, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
