"""Plots of a guidance search: the distance over guidance scale and interval, as heat maps and as curves."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from pmf_lightning.evaluation.guidance_search.records import Record
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting, SearchSpace, show
from pmf_lightning.utils.counted import counted
from pmf_lightning.utils.figures import subplots

COLOURS = "viridis_r"  # light means a small distance
LEAST_SPREAD = 1.05  # smallest ratio of the colour scale, so that small differences are not exaggerated
MOST_NUMBERED = 16  # maps with more columns have no numbers in their cells


def save_maps(records: Sequence[Record], axes: SearchSpace, best: SamplingSetting, name: str, path: Path) -> Path:
    """Plot the distance over omega and interval: a row of panels per average, a column per steps and method.

    ``best`` is framed. Cells that were not measured are blank; a cross marks images that are not finite. ``name`` is
    the name of the distance. Returns the path.
    """
    numbers = {record.point: record.fid for record in records}
    norm = _shared_scale(numbers)
    width, height = 1.6 + 0.55 * len(axes.omega), 1.1 + 0.38 * len(axes.interval)
    figure, panels = _panels(axes, width, height)
    for panel, corner in panels:
        values, image = _draw_map(panel, axes, corner, numbers, norm)
        if len(axes.omega) <= MOST_NUMBERED:
            _write_numbers(panel, values, image, corner, axes, numbers)
        if replace(best, omega=corner.omega, interval=corner.interval) == corner:
            at = axes.omega.index(best.omega) - 0.5, axes.interval.index(best.interval) - 0.5
            panel.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor="crimson", linewidth=3, clip_on=False, zorder=3))
    colours = figure.colorbar(image, ax=[panel for panel, _ in panels], label=f"{name} (lower is better)")
    colours.ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    colours.ax.yaxis.set_major_formatter("{x:g}")
    colours.ax.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(f"best (red): {best}, {numbers[best]:.4g}", fontsize=10)
    return _save(figure, path)


def save_lines(records: Sequence[Record], axes: SearchSpace, best: SamplingSetting, name: str, path: Path) -> Path:
    """Plot the distance over omega, a line per interval, in the panels of the maps; a ring marks ``best``."""
    numbers = {record.point: record.fid for record in records}
    figure, panels = _panels(axes, 4.2, 3.2, sharex=True, sharey=True)
    colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(axes.interval)))
    for panel, corner in panels:
        for interval, colour in zip(axes.interval, colours, strict=True):
            points = [replace(corner, omega=omega, interval=interval) for omega in sorted(axes.omega)]
            known = [(p.omega, numbers[p]) for p in points if numbers.get(p) is not None]
            label = f"[{show(interval[0])}, {show(interval[1])}]"
            panel.plot(*zip(*known or [(math.nan, math.nan)], strict=True), marker="o", ms=4, color=colour, label=label)
        if replace(best, omega=corner.omega, interval=corner.interval) == corner:
            ring = {"ms": 13, "mfc": "none", "mec": "crimson", "mew": 2}
            panel.plot(best.omega, numbers[best], marker="o", **ring)
        panel.set(xlabel="omega", ylabel=name, yscale="log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
        panel.label_outer()
    figure.legend(*panels[0][0].get_legend_handles_labels(), title="interval", loc="outside right center")
    figure.suptitle(f"best (ring): {best}, {numbers[best]:.4g}", fontsize=10)
    return _save(figure, path)


def _panels(axes: SearchSpace, width: float, height: float, **shared):
    """Return a figure, and for each titled panel its axes and the setting of its first cell."""
    ways = [(steps, sampler) for sampler in axes.sampler for steps in axes.steps]
    size = (width * len(ways) + 1.4, height * len(axes.ema) + 0.4)
    figure, grid = subplots(
        len(axes.ema), len(ways), figsize=(max(6.5, size[0]), size[1]), squeeze=False, layout="constrained", **shared
    )
    panels = []
    for row, ema in zip(grid, axes.ema, strict=True):
        for panel, (steps, sampler) in zip(row, ways, strict=True):
            panel.set_title(f"ema {ema}, {counted(steps, 'step')} of {sampler}", fontsize=9)
            panels.append((panel, SamplingSetting(ema, axes.omega[0], axes.interval[0], steps, sampler)))
    return figure, panels


def _shared_scale(numbers: dict[SamplingSetting, float | None]) -> LogNorm:
    known = [number for number in numbers.values() if number is not None and number > 0] or [1.0]
    return LogNorm(min(known), max(max(known), LEAST_SPREAD * min(known)))


def _draw_map(
    panel, axes: SearchSpace, corner: SamplingSetting, numbers: dict[SamplingSetting, float | None], norm: LogNorm
):
    values = np.array(
        [
            [_number(numbers, replace(corner, omega=omega, interval=interval)) for omega in axes.omega]
            for interval in axes.interval
        ]
    )
    image = panel.imshow(values, cmap=COLOURS, norm=norm, aspect="auto")
    panel.set_xticks(range(len(axes.omega)), [show(omega) for omega in axes.omega])
    panel.set_yticks(range(len(axes.interval)), [f"[{show(low)}, {show(high)}]" for low, high in axes.interval])
    panel.set(xlabel="omega", ylabel="[t_min, t_max]")
    panel.label_outer()
    return values, image


def _number(numbers: dict[SamplingSetting, float | None], point: SamplingSetting) -> float:
    number = numbers.get(point)
    return math.nan if number is None else max(number, 1e-12)


def _write_numbers(panel, values: np.ndarray, image, corner: SamplingSetting, axes: SearchSpace, numbers: dict) -> None:
    for (row, column), value in np.ndenumerate(values):
        point = replace(corner, omega=axes.omega[column], interval=axes.interval[row])
        if not math.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            style = {"color": "white" if dark else "black", "fontsize": 8}
            panel.text(column, row, f"{value:.4g}", ha="center", va="center", **style)
        elif point in numbers:
            panel.text(column, row, "x", ha="center", va="center", color="crimson", fontsize=12)


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
