"""PNG files: grids of images and curves of metrics."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

from pmf_lightning.data.transforms import to_uint8
from pmf_lightning.utils.bounded_files import read_rows
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.figures import subplots
from pmf_lightning.utils.grid_titles import HEIGHT, HEIGHT_KEY, with_titles

GAP = 2  # pixels between the images of a grid
SMALLEST = 64  # minimum image width on a grid, in pixels: digits of 32 pixels are hard to see


def save_grid(images: Float[Tensor, "n c h w"], columns: int, path: Path, titles: Sequence[str] | None = None) -> Path:
    """Write images in [-1, 1] as a grid, row by row, with a title above each column if given; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = to_uint8(images.detach().cpu()).float() / 255
    zoom = -(-SMALLEST // pixels.shape[-1])
    pixels = pixels.repeat_interleave(zoom, dim=-1).repeat_interleave(zoom, dim=-2)
    with atomic_write(path) as draft:
        grid = make_grid(pixels, nrow=columns, padding=GAP, pad_value=0.5)
        if titles is None:
            save_image(grid, draft, format="PNG")
        else:
            about = PngInfo()
            about.add_text(HEIGHT_KEY, str(HEIGHT))
            with_titles(to_pil_image(to_uint8(2 * grid - 1)), titles, GAP).save(draft, format="PNG", pnginfo=about)
    return path


def save_curves(log: Path, path: Path) -> Path:
    """Plot the logged squared errors and quality metrics over images seen; return the path."""
    rows = read_rows(Path(log))
    known = sorted({name for row in rows for name in row if "/" not in name})
    titles = {
        r"loss_": "mean squared error",
        r"force_norm_": "force norm (the loss is constant by construction)",
        r"fd_|f(d|id)\d": "Frechet distance",  # fd_digits, fd1k_classifier_jit, fid50k_jit
        r"is\d": "inception score",
        r"fdr": "Frechet distance / that of real images",
        r"sw_?r": "sliced Wasserstein / that of real images",
    }
    panels = {title: [name for name in known if re.match(start, name)] for start, title in titles.items()}
    panels = {title: names for title, names in panels.items() if names} or {"nothing was logged": []}
    figure, axes = subplots(1, len(panels), figsize=(6 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            _plot(axis, rows, name, label=name)
        axis.set(title=title, xlabel="images seen")
        if title != "inception score":
            _log_scale(axis)
        axis.grid(alpha=0.3)
        if names:
            axis.legend()
    figure.savefig(path, dpi=120)
    return Path(path)


def save_time_bins(log: Path, path: Path) -> Path | None:
    """Plot the metrics by bin of t and the gradient norm; return the path, None without binned metrics."""
    rows = read_rows(Path(log))
    names = sorted({tuple(name.split("/t", 1)) for row in rows for name in row if "/t" in name})
    if not names:
        return None
    bins = sorted({label for _, label in names}, key=lambda label: float(label.split("-")[0]))
    colours = dict(zip(bins, matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(bins))), strict=True))
    watched = sorted({name for name, _ in names}, key=lambda name: (name == "du_dt", name))
    width = 4.5 * (len(watched) + 1) + 1  # inches, one of them for the legend
    figure, axes = subplots(1, len(watched) + 1, figsize=(width, 4))
    figure.subplots_adjust(left=0.6 / width, right=1 - 1.4 / width, bottom=0.13, top=0.92, wspace=0.2)
    for axis, name in zip(axes, watched, strict=False):
        for label in bins:
            _plot(axis, rows, f"{name}/t{label}", label=label, color=colours[label])
        axis.set(title="rms of du/dt" if name == "du_dt" else f"mean of {name}")
    _plot(axes[-1], rows, "grad_norm", color="black")
    axes[-1].set(title="norm of the gradient")
    for axis in axes:
        axis.set(xlabel="images seen")
        _log_scale(axis)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), title="t (1: noise)", loc="center right")
    figure.savefig(path, dpi=100)
    return Path(path)


def _log_scale(axis) -> None:
    """Give ``axis`` a log scale with plain numbers at its ticks, at least two of them."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else AutoLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _plot(axis, rows: list[dict], name: str, **style) -> None:
    """Plot one logged number over images seen, with gaps where it is not finite or 0 (a log scale has no 0)."""
    points = [(row["images"], row[name] or math.nan) for row in rows if name in row]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, **style)
