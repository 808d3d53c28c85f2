"""Matplotlib figures for files, made without pyplot: its backend and open figures are the caller's global state."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """Return an empty figure; ``options`` are those of matplotlib.figure.Figure."""
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def subplots(
    rows: int, columns: int, figsize: tuple[int | float, int | float], layout: str | None = None, **shared: Any
) -> tuple:
    """Return a figure and its axes, like pyplot.subplots."""
    figure = new_figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **shared)
