"""Measure the peak memory of training processes on a CPU: python scripts/measure_memory.py OUT.json [steps=20]."""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = ("pmf_digits", "imf_digits", "jit_tiny", "drifting_tiny")
CHILD = """
import json, resource, sys
from pmf_lightning import compose
from pmf_lightning.train import train
cfg = compose(sys.argv[1:])
train(cfg)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print("PEAK", json.dumps({"batch": cfg.batch, "peak_mb": round(peak)}))
"""


def measured(model: str, steps: str) -> dict[str, int]:
    """Train a few steps of a preset in a process of its own; return its batch and its peak resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"model={model}", steps, "metrics=none", f"run_dir={folder}/run"]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("PEAK "))
    return json.loads(line.removeprefix("PEAK "))


def main(out: str, steps: str = "steps=20") -> None:
    """Write the numbers of all models, with the versions they were measured with."""
    import torch

    found = {model: measured(model, steps) for model in MODELS}
    facts = {"what": "peak resident memory of a training process", "steps": int(steps.partition("=")[2])}
    facts |= {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    Path(out).write_text(json.dumps({**facts, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
