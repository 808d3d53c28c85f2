"""Figures that are drawn to files, without pyplot: its backend and its open figures belong to the caller's session."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """Return an empty figure; ``options`` as of matplotlib.figure.Figure."""
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def subplots(
    rows: int, columns: int, figsize: tuple[int | float, int | float], layout: str | None = None, **shared: Any
) -> tuple:
    """Return a figure and its axes, as pyplot.subplots does."""
    figure = new_figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **shared)
