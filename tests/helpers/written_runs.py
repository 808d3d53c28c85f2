"""Run directories that tests write themselves: files as training leaves them, no training."""

import json
import shlex

import numpy as np
import yaml
from PIL import Image

ARMS = {"x-small": 3.8, "u-small": 3.82, "x-large": 9.56, "u-large": 164.89}
CLAIMS = [
    {"says": "u fails where patches are large", "lower": "x-large", "than": ["u-large"], "by": 2},
    {"says": "both work where they are small", "alike": ["x-small", "u-small"], "within": 1.5},
]
# arm -> fd of seeds 0 and 1
FD = {"x-small": (8.0, 9.0), "u-small": (8.5, 9.5), "x-large": (7.0, 9.0), "u-large": (120.0, 130.0)}


def study(arm, **changes):
    block = {
        "name": "pmf_table2",
        "scale": "small",
        "source": "pMF, table 2",
        "title": "x works where patches outgrow the network",
        "vary": {},
        "arm": arm,
        "columns": {"prediction": arm[0], "numbers in a patch": 64 if arm.endswith("small") else 1024},
        "measure": "fd",
        "arms": ARMS,
        "paper_measure": "FID-50K at 64 and 256 pixels, 160 epochs",
        "claims": CLAIMS,
        "note": "Small: digits in place of ImageNet.",
    }
    return {**block, **changes}


def write_run(folder, seed=0, fd=5.0, block=None, log=True, grey=True, record=None, summary=(), **config):
    """Write a finished run of one measurement; ``fd=None``: without an end, as a kill leaves it.

    The command of a run outside a study names ``config`` as overrides.
    """
    folder.mkdir(parents=True)
    whole = {
        **{"seed": seed, "run_dir": str(folder), "cache_dir": "/home/somebody/.cache/pmf", "name": "pmf_digits"},
        **{"images": 640, "sample_grid": {"rows": 4, "columns": 10}, "data": {"classes": 3, "resolution": 32}},
        **{"study": block, "backbone": {"patch": 4}, **config},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    if record is not False:
        command = {} if block else {"command": " ".join(["python -m pmf_lightning.train", *overrides(config)])}
        (folder / "run.json").write_text(json.dumps({**RECORD, **command, **(record or {})}))
    if log:
        rows = [{"step": n, "images": 64 * n, "loss_u": 2.0 / n, "loss_u/t0-0.2": 1.0} for n in range(1, 11)]
        rows[4]["fd_digits"], rows[9]["fd_digits"] = 2.0 * (fd or 1), fd
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if fd is not None:
        numbers = {"fd": fd, "fd_floor": 2.5, "class_accuracy": 0.9, "images_per_second": 100.0, "nfe": 1}
        end = {"wall_seconds": 120.0, "stopped_early": False, "checkpoint": str(folder / "checkpoints" / "last.ckpt")}
        (folder / "summary.json").write_text(json.dumps({**numbers, **end, **dict(summary)}))
        write_grid(folder / "grids" / "final.png", grey)
    return folder


def overrides(config, above=""):
    """The overrides that make a nested configuration."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from overrides(value, f"{above}{key}.")
        else:
            yield shlex.quote(f"{above}{key}={value}")


RECORD = {
    "command": "python -m pmf_lightning.train -m experiment=pmf_table2 seed=0,1",
    "commit": "0123456",
    "uncommitted": False,
    "started": "2026-11-22T12:00:00+0000",
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "device": "cpu",
    "threads": 1,
    "cores": 2,
}


def write_grid(path, grey=True, columns=3, rows=4, side=64):
    """A grid as training draws it: the image in row r and column c is of value 40 r + 5 c, lines between of 128."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((rows * (side + 2) + 2, columns * (side + 2) + 2, 3), 128, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (side + 2) + 2, column * (side + 2) + 2
            pixels[top : top + side, left : left + side] = 40 * row + 5 * column
    if not grey:
        pixels[..., 2] = 255 - pixels[..., 2]
    Image.fromarray(pixels).save(path)


def write_study(root, numbers=None, **changes):
    """Write pmf_table2 with the numbers of FD, two seeds of each arm; ``changes`` of its study."""
    for arm, seeds in (numbers or FD).items():
        for seed, fd in enumerate(seeds):
            write_run(root / f"{arm}-seed{seed}", seed, fd, study(arm, **changes))
    return root
