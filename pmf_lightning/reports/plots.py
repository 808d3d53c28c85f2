"""Plots of a sweep: the measure next to the paper's, curves over images seen, and sample strips."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from pmf_lightning.reports.formatting import is_number, show, show_paper
from pmf_lightning.reports.runs import Run, log_name, parsed
from pmf_lightning.reports.sweeps import ReportArm, Sweep
from pmf_lightning.reports.table import title
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.figures import new_figure, subplots
from pmf_lightning.utils.grid_titles import HEIGHT_KEY

WIDE = 8  # ratio of largest to smallest number above which an axis is logarithmic

LOSSES = ("loss_", "force_norm_")  # drifting's loss is constant by construction

MOST_LOSSES = 2

FEW = 20  # curves with fewer points get a marker per point

PAPER = "0.6"  # grey


def colours_of(arms: Sequence[ReportArm]) -> dict[str, Any]:
    """Return a colour for each arm."""
    if len(arms) <= 10:
        return {arm.name: f"C{number}" for number, arm in enumerate(arms)}
    spaced = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(arms)))
    return {arm.name: colour for arm, colour in zip(arms, spaced, strict=True)}


def save_measure(sweep: Sweep, path: Path) -> Path | None:
    """Draw a bar per arm with the range of its seeds, next to the paper's bars; None if no arm has a number."""
    ours = {arm.name: value for arm in sweep.arms if sweep.measure and (value := arm.spread(sweep.measure))}
    theirs = {arm.name: float(arm.paper) for arm in sweep.arms if arm.paper is not None}
    if not ours:
        return None
    names, colours = [arm.name for arm in sweep.arms], colours_of(sweep.arms)
    size = (10 if theirs else 6.5, 1.3 + 0.36 * len(names))
    figure, axes = subplots(1, 2 if theirs else 1, figsize=size, squeeze=False, sharey=True, layout="constrained")
    left = axes[0][0]
    means = {name: value.mean for name, value in ours.items()}
    reach = {name: (value.low, value.high) for name, value in ours.items() if value.seeds > 1}
    _bars(left, names, means, [colours[name] for name in names], reach, show)
    for row, arm in enumerate(sweep.arms):
        if arm.name not in ours:
            left.text(
                0.02, row, arm.state, transform=left.get_yaxis_transform(), va="center", fontsize=9, style="italic"
            )
    left.set_title(f"{'ours: ' if theirs else ''}{title(sweep.measure)}", fontsize=11)
    if theirs:
        _bars(axes[0][1], names, theirs, [PAPER] * len(names), {}, show_paper)
        axes[0][1].set_title(f"paper: {sweep.study.paper_short}", fontsize=11)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.45, -0.55)
    return _save(figure, path)


def _bars(
    axis, names: Sequence[str], values: Mapping[str, float], colours: Sequence[Any], reach: Mapping, write
) -> None:
    known = [value for value in values.values() if value > 0]
    is_wide = len(known) == len(values) and max(known) > WIDE * min(known)
    for row, name in enumerate(names):
        if name in values:
            axis.barh(row, values[name], color=colours[row], height=0.62)
            low, high = reach.get(name, (values[name], values[name]))
            if high > low:
                axis.plot([low, high], [row, row], color="black", lw=1.5, marker="|", ms=7)
            axis.annotate(write(values[name]), (high, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    if is_wide:
        axis.set_xscale("log")
        low, high = min(known), max([*known, *(high for _, high in reach.values())])
        axis.set_xlim(low / 2, high * (high / low) ** 0.25)  # leaves room for the numbers next to the bars
        _plain_ticks(axis.xaxis)
    else:
        axis.margins(x=0.15)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def save_curves(sweep: Sweep, path: Path) -> Path | None:
    """Draw the measure and the losses over images seen, a line per run; None if nothing was logged."""
    panels = _panels(sweep)
    if not panels:
        return None
    figure, axes = subplots(1, len(panels), figsize=(4.6 * len(panels) + 2, 3.8), squeeze=False, layout="constrained")
    for axis, (label, lines) in zip(axes[0], panels.items(), strict=True):
        _lines(axis, lines, colours_of(sweep.arms))
        axis.set_title(label, fontsize=11)
    handles = dict(pair for axis in axes[0] for pair in zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    shown = [arm.name for arm in sweep.arms if arm.name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside right upper", fontsize=9)
    return _save(figure, path)


def _panels(sweep: Sweep) -> dict[str, list[tuple[str, list]]]:
    """Return title -> [(arm, points) of each run that logged it], the measure first."""
    panels: dict[str, list] = {}
    names = {name for run in sweep.runs for row in run.log for name in row if "/" not in name}
    losses = next((found for start in LOSSES if (found := sorted(n for n in names if n.startswith(start)))), [])
    for key in [*([sweep.measure] if sweep.measure else []), *losses[:MOST_LOSSES]]:
        for arm in sweep.arms:
            for run in arm.runs:
                name = log_name(run.log, key, run.summary) if key == sweep.measure else key
                points = [(row["images"], row[name]) for row in run.log if is_number(row.get(name))] if name else []
                if points:
                    panels.setdefault(title(key) if key == sweep.measure else key, []).append((arm.name, points))
    return {label: lines for label, lines in panels.items() if max(len(points) for _, points in lines) > 1}


def _lines(axis, lines: Sequence[tuple[str, list]], colours: Mapping[str, Any]) -> None:
    positive = [value for _, points in lines for _, value in points if value > 0]
    is_log = bool(positive) and max(positive) > WIDE * min(positive)
    named = set()
    for name, points in lines:
        x, y = zip(*((images, value if value > 0 or not is_log else math.nan) for images, value in points), strict=True)
        marker = "o" if len(points) < FEW else None
        label = None if name in named else name
        axis.plot(x, y, color=colours[name], marker=marker, ms=4, lw=1.2, alpha=0.85, label=label)
        named.add(name)
    if is_log:
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis)
    axis.set_xlabel("images seen")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,g}k" if value >= 1000 else f"{value:g}")
    axis.grid(alpha=0.3)


def _plain_ticks(axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 3) if high > 30 * low else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    with Image.open(path) as drawn:  # a palette needs a quarter of the bytes
        small = drawn.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(path, format="PNG", optimize=True)
    return path


ROWS = 2  # rows of a sample grid: mode collapse shows within a column ...

MANY = 8  # ... but one row if a sweep has more arms than this

GREYS, COLOURS = 16, 64  # levels of pictures to commit

GAP = 2  # pixels between the images of a grid, and around it

WIDTH = 662  # maximum width of a strip in pixels: ten images of 64

LABEL = 24  # pixels for the name above a strip

DPI = 100


def save_strips(sweep: Sweep, path: Path, coarse: bool = False) -> dict[Path, tuple[int, int, int, int]]:
    """Draw the sample strips of all arms below each other, without rescaling.

    Returns the box (left, top, right, bottom) of each strip by the folder of its run; empty if no run has a grid. A
    picture that contains all strips already is copied. ``coarse``: with few greys or colours, for a file to commit.
    """
    found = [(arm, run) for arm in sweep.arms if (run := run_of_samples(arm)) is not None]
    if not found:
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {run.samples.path for _, run in found}
    if all(run.samples.box for _, run in found) and len(pictures) == 1:
        if (picture := pictures.pop()).resolve() != path.resolve():
            shutil.copyfile(picture, path)
        return {run.folder: run.samples.box for _, run in found}
    strips = [(arm, run, np.asarray(strip_of(run, rows_of(sweep)))) for arm, run in found]
    width = max(strip.shape[1] for _, _, strip in strips)
    height = sum(strip.shape[0] + LABEL for _, _, strip in strips)
    figure = new_figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    bottom, boxes = height, {}  # from below, as in matplotlib
    for arm, run, strip in strips:
        figure.text(2 / width, (bottom - LABEL + 6) / height, _label(arm, run), fontsize=9.5, va="baseline")
        bottom -= LABEL + strip.shape[0]
        figure.figimage(np.stack([strip] * 3, -1) if strip.ndim == 2 else strip, 0, bottom, resize=False)
        boxes[run.folder] = (0, height - bottom - strip.shape[0], strip.shape[1], height - bottom)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    _save_small(Image.fromarray(pixels), path, coarse)
    return boxes


def rows_of(sweep: Sweep) -> int:
    """Return the number of rows that are shown of each sample grid."""
    return ROWS if len(sweep.arms) <= MANY else 1


def run_of_samples(arm: ReportArm) -> Run | None:
    """Return the run whose samples represent an arm: the first finished one with a grid, else any with one."""
    runs = [run for run in [*arm.finished, *arm.runs] if run.samples]
    return runs[0] if runs else None


def strip_of(run: Run, rows: int) -> Image.Image:
    """Return the first rows of a run's last grid, at most ``WIDTH`` wide; a part of samples.png is one already.

    Raises UserError if the file cannot be read.
    """
    image, titles = parsed(run.samples.path, _opened)
    if run.samples.box:
        image = image.crop(run.samples.box)
        return image.convert("L") if _is_grey(image) else image
    if titles.isdecimal():
        image = image.crop((0, min(int(titles), image.height - 1), image.width, image.height))
    columns = _columns(run.config)
    pitch = (image.width - GAP) / columns
    image = image.crop((0, 0, image.width, min(image.height, round(rows * pitch) + GAP)))
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    return image.convert("L") if _is_grey(image) else image


def _opened(path: Path) -> tuple[Image.Image, str]:
    """Return a picture and the height of its titles; raises OSError or ValueError if it cannot be read."""
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB"), str(opened.info.get(HEIGHT_KEY, ""))
    except SyntaxError as error:  # Pillow's for a damaged part of a PNG
        raise ValueError(error) from error


def _save_small(image: Image.Image, path: Path, coarse: bool) -> Path:
    """Write a PNG, with one channel if the image is grey; ``coarse``: with few greys or colours, half the size."""
    image, options = image.convert("L") if _is_grey(image) else image, {}
    if coarse and image.mode == "L":
        image, options = _in_greys(image), {"bits": 4}
    elif coarse:
        image = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with atomic_write(path) as draft:
        image.save(draft, format="PNG", optimize=True, **options)
    return path


def _in_greys(image: Image.Image) -> Image.Image:
    """Quantise a picture to evenly spaced greys, including black and white."""
    step = 255 // (GREYS - 1)
    levels = (np.asarray(image).astype(int) + step // 2) // step
    coarse = Image.frombytes("P", image.size, levels.astype(np.uint8).tobytes())
    coarse.putpalette([grey * step for grey in range(GREYS) for _ in "rgb"])
    return coarse


def _columns(config: Mapping[str, Any]) -> int:
    """Return the number of grid columns: the number of classes, up to a limit."""
    limit = (config.get("sample_grid") or {}).get("columns", 10)
    classes = (config.get("data") or {}).get("classes", limit)
    return limit if classes == 1 else max(1, min(limit, classes))


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., :1] == pixels).all())


def _label(arm: ReportArm, run: Run) -> str:
    parts = [arm.name]
    parts += [] if run.seed is None else [f"seed {run.seed}"]
    parts += [] if run.state == "finished" else [run.state]
    return ", ".join(parts)
