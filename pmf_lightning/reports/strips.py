"""A picture of samples: under each arm's name the first rows of its last grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pmf_lightning.cache import atomic_write
from pmf_lightning.figures import new_figure
from pmf_lightning.reports.runs import Run
from pmf_lightning.reports.sweeps import Arm, Sweep

ROWS = 2  # of a grid: samples that are all alike look so in a column ...
MANY = 8  # ... but one where a sweep has more arms than these
GREYS, COLOURS = 16, 64  # of what is kept
GAP = 2  # pixels between the images of a grid, and around it
WIDTH = 662  # pixels of a strip, at most: ten images of 64
LABEL = 24  # pixels for the name above a strip
DPI = 100


def save_strips(sweep: Sweep, path: Path) -> Path | None:
    """Draw the strips of all arms below each other, pixel for pixel; None where no run has a grid."""
    found = [(arm, run) for arm in sweep.arms if (run := run_of_samples(arm)) is not None]
    if not found:
        return None
    strips = [(_label(arm, run), np.asarray(strip_of(run, rows_of(sweep)))) for arm, run in found]
    width = max(strip.shape[1] for _, strip in strips)
    height = sum(strip.shape[0] + LABEL for _, strip in strips)
    figure = new_figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    top = height
    for label, strip in strips:
        figure.text(2 / width, (top - LABEL + 6) / height, label, fontsize=9.5, va="baseline")
        top -= LABEL + strip.shape[0]
        figure.figimage(np.stack([strip] * 3, -1) if strip.ndim == 2 else strip, 0, top, resize=False)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_small(Image.fromarray(pixels), path, coarse=all(run.is_kept for _, run in found))
    return path


def rows_of(sweep: Sweep) -> int:
    """Return how many rows of each grid a picture of the sweep has."""
    return ROWS if len(sweep.arms) <= MANY else 1


def run_of_samples(arm: Arm) -> Run | None:
    """Return the run whose samples stand for an arm: the first finished one with a grid, else any with one."""
    runs = [run for run in [*arm.finished, *arm.runs] if run.samples]
    return runs[0] if runs else None


def strip_of(run: Run, rows: int) -> Image.Image:
    """Return the first rows of a run's last grid, no wider than ``WIDTH``; a strip gives itself."""
    with Image.open(run.samples) as opened:
        image = opened.convert("RGB")
    columns = _columns(run.config)
    pitch = (image.width - GAP) / columns
    image = image.crop((0, 0, image.width, min(image.height, round(rows * pitch) + GAP)))
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    return image.convert("L") if _is_grey(image) else image


def save_small(image: Image.Image, path: Path, coarse: bool) -> Path:
    """Write a PNG, of one channel where that is all there is; ``coarse``: in few greys or colours, half as large."""
    image, options = image.convert("L") if _is_grey(image) else image, {}
    if coarse and image.mode == "L":
        image, options = _in_greys(image), {"bits": 4}
    elif coarse:
        image = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with atomic_write(path) as draft:
        image.save(draft, format="PNG", optimize=True, **options)
    return path


def _in_greys(image: Image.Image) -> Image.Image:
    """Return a picture in evenly spaced greys, black and white among them."""
    step = 255 // (GREYS - 1)
    levels = (np.asarray(image).astype(int) + step // 2) // step
    coarse = Image.frombytes("P", image.size, levels.astype(np.uint8).tobytes())
    coarse.putpalette([grey * step for grey in range(GREYS) for _ in "rgb"])
    return coarse


def _columns(config: Mapping[str, Any]) -> int:
    """Return how many images a row of the grid has: the classes, up to a limit."""
    limit = (config.get("grid") or {}).get("columns", 10)
    return max(1, min(limit, (config.get("data") or {}).get("classes", limit)))


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., :1] == pixels).all())


def _label(arm: Arm, run: Run) -> str:
    parts = [arm.name]
    parts += [] if run.seed is None else [f"seed {run.seed}"]
    parts += [] if run.state == "finished" else [run.state]
    return ", ".join(parts)
