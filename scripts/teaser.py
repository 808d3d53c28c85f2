"""Make docs/assets/teaser.png from committed samples and results: python scripts/teaser.py [OUT.png]."""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
GROUND, INK, FAINT = "#14161c", "#e8eaf0", "#8a90a0"
OURS, PAPER = "#7c9cff", "#5a6072"


def cut(path: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the part (left, top, right, bottom) of a committed picture."""
    return np.asarray(Image.open(EXPERIMENTS / path).convert("RGB").crop(box).resize((662, 134), Image.LANCZOS))


def strips() -> list[tuple[str, np.ndarray]]:
    """Return title and two rows of samples of each method on Fashion-MNIST."""
    results = json.loads((EXPERIMENTS / "fashion" / "results.json").read_text())["runs"]
    found = []
    for name in ("pMF", "iMF", "Drifting, 32 samples of a label", "JiT"):
        run, method = results[name], name.partition(",")[0]
        evaluations = "1 network evaluation" if run["nfe"] == 1 else f"{run['nfe']} network evaluations"
        picture = cut(f"fashion/{method.lower()}.png", (0, 82, 662, 216))  # below the names of the classes
        found.append((f"{method}  ·  {evaluations}  ·  fd {run['fd']:.1f}", picture))
    return found


def table2() -> list[tuple[str, float, float]]:
    """Return (prediction, our mean Frechet distance, the paper's FID) for large patches and v-loss of JiT's table 2."""
    with (EXPERIMENTS / "jit_table2" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    bars = []
    for name, arm in {"x": "x-v-loss-large", "ε": "eps-v-loss-large", "v": "v-v-loss-large"}.items():
        seeds = [row for row in rows if row["arm"] == arm]
        bars.append((name, float(np.mean([float(row["fd"]) for row in seeds])), float(seeds[0]["paper"])))
    return bars


def main(out: str) -> None:
    """Draw the samples of four methods on the left and one ablation, ours next to the paper's, on the right."""
    plt.rcParams.update(
        {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": FAINT, "ytick.color": INK}
    )
    figure = plt.figure(figsize=(10, 4.1), facecolor=GROUND)
    left = figure.add_gridspec(4, 1, left=0.015, right=0.44, top=0.945, bottom=0.015, hspace=0.3)
    for place, (title, picture) in zip(left, strips(), strict=True):
        axes = figure.add_subplot(place)
        axes.imshow(picture, aspect="equal", interpolation="lanczos")
        axes.set_title(title, fontsize=9.5, loc="left", pad=3)
        axes.set_anchor("W")
        axes.axis("off")
    axes = figure.add_axes((0.57, 0.2, 0.4, 0.6), facecolor=GROUND)
    bars = table2()
    for shift, color, label in (
        (0.2, OURS, "here: digits, Frechet distance"),
        (-0.2, PAPER, "paper: ImageNet 256, FID"),
    ):
        values = [bar[1 if shift > 0 else 2] for bar in bars]
        places = np.arange(len(bars))[::-1] + shift
        axes.barh(places, values, height=0.36, color=color, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value * 1.08, place, f"{value:.3g}", va="center", fontsize=9)
    axes.set(xscale="log", xlim=(1, 1500), yticks=np.arange(len(bars))[::-1])
    axes.set_yticklabels([f"{bar[0]}-prediction" for bar in bars])
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.tick_params(length=0, which="both")
    axes.spines[:].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, -0.32), ncols=2, frameon=False, fontsize=8.5, columnspacing=1)
    figure.text(0.57, 0.93, "Each table of the papers is one command", fontsize=12, weight="bold", va="center")
    figure.text(
        0.57, 0.865, "JiT, table 2, large patches, v-loss (lower is better)", fontsize=9.5, color=FAINT, va="center"
    )
    figure.savefig(out, dpi=120, facecolor=GROUND)
    Image.open(out).convert("RGB").quantize(96).save(out, optimize=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(EXPERIMENTS.parent / "docs" / "assets" / "teaser.png")]))
