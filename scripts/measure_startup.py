"""Measure the processor seconds of help, refusals and info: python scripts/measure_startup.py [OUT.json] [repeats=3].

``import torch`` is measured in turns with them: seconds vary with the machine, and the ratio to it less. Set PYTHONPATH
to the folder of another version to measure that one.
"""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "pmf --help": ["-m", "pmf_lightning", "--help"],
    "train --help": ["-m", "pmf_lightning.train", "--help"],
    "train model=nope": ["-m", "pmf_lightning.train", "model=nope"],
    "train optimizer.lr=fast": ["-m", "pmf_lightning.train", "optimizer.lr=fast"],
    "train optimizer.lrr=1": ["-m", "pmf_lightning.train", "optimizer.lrr=1"],
    "sample ckpt=/nowhere": ["-m", "pmf_lightning.sample", "ckpt=/nowhere"],
    "info model=jit_b16": ["-m", "pmf_lightning.info", "model=jit_b16"],
    "info model=pmf_b16": ["-m", "pmf_lightning.info", "model=pmf_b16"],
}


def processor_seconds(arguments: list[str]) -> float:
    """Run Python with ``arguments``; return its processor seconds, those of the system included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True)  # refusals end with 2
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(*arguments: str) -> None:
    """Print the least seconds of each command and their ratio to ``import torch``; write them to a file, if named."""
    repeats = next((int(one.partition("=")[2]) for one in arguments if one.startswith("repeats=")), 3)
    least = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            least[name] = min(least[name], processor_seconds(command))
    for name, seconds in least.items():
        print(f"{name:26} {seconds:6.2f} s   {seconds / least['import torch']:5.2f} x import torch")
    facts = {"what": "processor seconds, the least", "repeats": repeats, "python": platform.python_version()}
    for out in (one for one in arguments if "=" not in one):
        rounded = {name: round(seconds, 2) for name, seconds in least.items()}
        Path(out).write_text(json.dumps({**facts, "commands": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
