"""Show the scores of a battery: a table and a bar chart of ratios per encoder."""

from pathlib import Path

from rich.table import Table

from pmf_lightning.evaluation.battery.scores import HELD_OUT, TRAINED, BatteryScores
from pmf_lightning.utils.cache import atomic_write
from pmf_lightning.utils.figures import subplots

COLOURS = {TRAINED: "tab:orange", HELD_OUT: "tab:blue"}
TITLES = {"fdr": "FDr: Frechet distance", "swr": "SW ratio: sliced Wasserstein"}
WIDE = 20  # ratio above which the axis is logarithmic


def score_table(scores: BatteryScores, title: str) -> Table:
    """Return a table with a row per encoder, and the means below."""
    table = Table(title=title)
    for column in ("encoder", "", "FD", "FDr", "real images", "SW", "SW ratio", "class accuracy"):
        table.add_column(column, justify="left" if column in ("encoder", "") else "right")
    accuracy = _shown(scores.class_accuracy)
    for name, one in scores.encoders.items():
        spread = "1" if one.spread is None else f"1 +- {one.spread:.2f}"
        numbers = _shown(one.fd), _shown(one.fdr), spread, _shown(one.sw), _shown(one.swr), accuracy
        table.add_row(name, one.mark, *numbers)
    table.add_section()
    marks = [None, TRAINED, HELD_OUT] if len({one.mark for one in scores.encoders.values()}) == 2 else [None]
    for mark in marks:
        count = scores.count("fdr", mark)
        fdr, swr = scores.mean("fdr", mark), scores.mean("swr", mark)
        table.add_row(f"mean of {count}", mark or "", "", _shown(fdr), "1", "", _shown(swr), accuracy)
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def save_bars(scores: BatteryScores, path: Path) -> Path:
    """Draw the ratios of every encoder as bars, with a line at 1, where real images are; return the path."""
    ratios = [ratio for ratio in TITLES if scores.mean(ratio) is not None]
    size = 1.5 + 4 * len(ratios), 1.4 + 0.3 * len(scores.encoders)
    figure, axes = subplots(1, len(ratios), size, layout="constrained", squeeze=False, sharey=True)
    for axis, ratio in zip(axes[0], ratios, strict=True):
        for mark, colour in COLOURS.items():
            found = {name: getattr(one, ratio) for name, one in scores.encoders.items() if one.mark == mark}
            found = {name: value for name, value in found.items() if value is not None}
            if found:
                bars = axis.barh(list(found), list(found.values()), color=colour, label=mark)
                axis.bar_label(bars, fmt="%.3g", padding=3, bbox={"color": "white", "pad": 1}, zorder=4)
        axis.axvline(1, color="black", linewidth=1, label="real images", zorder=3)
        largest = max(getattr(one, ratio) or 0 for one in scores.encoders.values())
        axis.set(title=TITLES[ratio], xscale="log" if largest > WIDE else "linear", xlabel="ratio to validation images")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.margins(x=0.15)
    axes[0][0].invert_yaxis()  # the first encoder at the top
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=120, format="png")
    return path
