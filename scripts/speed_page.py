"""Write the tables and pictures of docs/speed.md from experiments/speed_cpu/*.json: python scripts/speed_page.py"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pmf_lightning.profiling.benchmarks.growth import X
from pmf_lightning.profiling.benchmarks.roofline import KINDS
from pmf_lightning.utils.figures import subplots

ROOT = Path(__file__).resolve().parents[1]
NUMBERS, PAGE, PICTURES = ROOT / "experiments" / "speed_cpu", ROOT / "docs" / "speed.md", ROOT / "docs" / "assets"
PARTS = ("guidance", "derivative", "forward", "backward", "optimizer", "averages")
LIMIT, OTHERS = "0.25", "0.6"  # greys
APART = 1.8  # ratio of neighbours on an axis below which the second has no label
LABELS = {"batch": "images at once", "resolution": "pixels a side, 256 patches", "tokens": "tokens", "size": "weights"}
RACES = {  # file -> what is raced; <file>_compiled has the race with compile=true
    "fd_loss": "FD-loss's `pMFDenoiser`",
    "jax_pmf": "the official JAX step under jit",
    "jit": "JiT's `Denoiser`",
}
COMPILED = "_compiled"


def read(folder: Path = NUMBERS) -> dict[str, Any]:
    """Return the numbers of every file by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def table(numbers: dict[str, Any]) -> str:
    """Return the table of speeds in Markdown; a measurement that is not there has no row."""
    lines = ["| what | ours | compared with | ratio (range) |", "|---|---|---|---|"]
    step, batches = numbers["step_small"], numbers["sampling_b16"]["batches"]
    plain = f"pMF, loss and gradients, width 384, 16 blocks, 256 pixels, {step['images']} images, {_threads(step)}"
    both = (("step_small", plain), (f"step_small{COMPILED}", "that step with `compile=true`"))
    peak = max(numbers[name]["matmul_gflop_per_second"] for name, _ in both)
    for name, what in both:
        step, book = numbers[name], numbers[name]["textbook"]
        share = step["gflop"] / step["loss_and_gradients_ms"] * 1e3 / peak
        ours = f"{_ms(step['loss_and_gradients_ms'])}, {100 * share:.0f} % of the speed of a large matrix product"
        lines.append(_row(what, ours, f"the printed step: {_ms(book['ms'])}", book))
    for name, peer in RACES.items():
        for race, added in ((numbers.get(name), ""), (numbers.get(name + COMPILED), ", ours with `compile=true`")):
            if race is not None:
                kind = "JiT" if name == "jit" else "the same step"
                what = f"{kind}, width {race['width']}, {race['images']} images, {_threads(race)}{added}"
                lines.append(_row(what, _ms(race["ours_ms"]), f"{peer}: {_ms(race['peer_ms'])}", race))
    four, one = (batches[size]["share_of_matmul_peak"] for size in ("4", "1"))
    whole = f"the speed of a large matrix product: {100 * four:.0f} % (one image: {100 * one:.0f} %)"
    lines.append(f"| pMF-B/16, noise to 4 images in one evaluation | {_ms(batches['4']['ms'])} | {whole} | |")
    for name, kind in (("data_npy", "`npy`"), ("data_jpg", "`jpg quality=95`")):
        for workers, read_by in (("2", "two processes"), ("0", "one process")):
            speed = numbers[name]["by_workers"][workers]
            what = f"reading shards of 256-pixel crops, {kind}, {read_by}"
            theirs = f"ImageFolder, which decodes and crops 500 x 375 JPEGs: {speed['files']:,.0f}"
            lines.append(_row(what, f"{speed['shards']:,.0f} images/s", theirs, speed))
    return "\n".join(lines)


def parts(numbers: dict[str, Any]) -> str:
    """Return a sentence with the milliseconds of each part of the step."""
    each = numbers["step_small"]["parts_ms"]
    inside = ", ".join(f"{name} {each[name]:,.0f}" for name in PARTS[:4])
    return (
        f"Parts of that step in ms: {inside}; then the optimiser\n"
        f"{each['optimizer']:,.0f} (30 million weights, Newton-Schulz on a CPU) and three averages "
        f"{each['averages']:.0f}."
    )


def operations(numbers: dict[str, Any]) -> str:
    """Return the table of the step's operations by kind beside the limits of the machine, in Markdown."""
    lines = [
        "| operations of the step | ms | share | speed | of the machine's limit | ms with `compile=true` | share |",
        "|---|---|---|---|---|---|---|",
    ]
    limits = (("gflop_per_second", "GFLOP/s", "share_of_peak"), ("gb_per_second", "GB/s", "share_of_copy"))
    seen, fused = (numbers[name]["operations"] for name in ("step_small", f"step_small{COMPILED}"))
    for kind, found, other in ((kind, seen[kind], fused[kind]) for kind in KINDS if kind in seen):
        speed = next(
            (f"{found[rate]:.0f} {unit} | {100 * found[of]:.0f} %" for rate, unit, of in limits if rate in found), " | "
        )
        eager, compiled = (f"{one['ms']:,.0f} | {100 * one['share']:.0f} %" for one in (found, other))
        lines.append(f"| {kind} | {eager} | {speed} | {compiled} |")
    return "\n".join(lines)


def memory(numbers: dict[str, Any]) -> str:
    """Return the table of counted and measured memory of the large networks, in Markdown."""
    lines = [
        "| two images or labels at once, 256 pixels | measured GB | counted GB | counted / measured |",
        "|---|---|---|---|",
    ]
    for name, found in numbers["memory_large"]["models"].items():
        grown, counted = found["grown_mb"], found["process_mb"]
        gigabytes = (f"{value * 2**20 / 1e9:.2f}" for value in (grown, counted))
        lines.append(f"| `{name}` | {' | '.join(gigabytes)} | {counted / grown:.2f} |")
    return "\n".join(lines)


def _row(what: str, ours: str, theirs: str, ratio: dict[str, float]) -> str:
    low, high = ratio["ratio_min"], ratio["ratio_max"]
    digits = 2 if ratio["ratio"] < 10 else 1
    middle = f"{ratio['ratio']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return f"| {what} | {ours} | {theirs} | {middle} |"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"


def _threads(result: dict[str, Any]) -> str:
    return "one thread" if result["threads"] == 1 else f"{result['threads']} threads"


def draw_step(numbers: dict[str, Any], path: Path) -> None:
    """Draw the parts of our step, eager and compiled, the steps of others below, and the time of the products alone."""
    step = numbers["step_small"]
    _, axes = subplots(1, 1, figsize=(8, 3.2), layout="constrained")
    for bar, name in (("this package", "step_small"), ("with compile=true", f"step_small{COMPILED}")):
        left = 0.0
        for number, part in enumerate(PARTS):
            width = numbers[name]["parts_ms"][part]
            faint = {"alpha": 0.45} if part in ("optimizer", "averages") else {}
            axes.barh(bar, width, left=left, color=f"C{number}", label=part if bar == "this package" else None, **faint)
            left += width
    others = {"the printed step": step["textbook"]["ratio"]}
    raced = [name for name in ("fd_loss", "jax_pmf") if name in numbers]
    others |= {RACES[name].replace("`", ""): numbers[name]["ratio"] for name in raced}
    whole = sum(step["parts_ms"][name] for name in PARTS[:4])
    for name, ratio in others.items():
        axes.barh(name, whole * ratio, color=OTHERS)
        axes.text(whole * ratio, name, f" {ratio:.2f} x", va="center", fontsize=9)
    limit = 1e3 * step["gflop"] / step["matmul_gflop_per_second"]
    axes.axvline(limit, color=LIMIT, linestyle="--", label="its products at the\nspeed of a large one")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("ms; faint: what follows the gradients, not in the bars of the others")
    axes.set_title(f"A step of pMF, width 384, 256 pixels, {step['images']} images", fontsize=11)
    axes.legend(fontsize=8, ncols=1, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.figure.savefig(path, dpi=150)


def draw_growth(numbers: dict[str, Any], path: Path) -> None:
    """Draw the processor time of loss and gradients as each of four sizes grows, with slopes, log-log."""
    curves = {name: curve for name in X for curve in [growth_of(numbers, name)] if curve}
    _, row = subplots(1, len(curves), figsize=(3 * len(curves), 2.9), layout="constrained", squeeze=False, sharey=True)
    for axes, (name, points) in zip(row[0], curves.items(), strict=True):
        x, y = (np.array([point[key] for point in points], float) for key in (X[name], "processor_ms"))
        axes.loglog(x, y, "o-")
        slope = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
        axes.set_title(f"slope {slope:.2f} at the end", fontsize=10)
        axes.set_xlabel(LABELS[name])
        apart = [i for i, value in enumerate(x) if i == 0 or value > APART * x[i - 1]]
        axes.set_xticks(x[apart], [_short(value) for value in x[apart]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    row[0][0].set_ylabel("loss and gradients, processor ms")
    row[0][0].figure.savefig(path, dpi=150)


def growth_of(numbers: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the points of a curve, which may be in a file of its own; empty if it was not measured."""
    found = [result["curves"][name] for result in numbers.values() if name in result.get("curves", ())]
    return found[0] if found else []


def _short(value: float) -> str:
    if value < 1e5:
        return f"{value:.0f}"
    return f"{value / 1e6:.1f} M" if value < 1e6 else f"{value / 1e6:.0f} M"


def filled(page: str, numbers: dict[str, Any]) -> str:
    """Return ``page`` with the generated blocks between their marks; raises ValueError if a mark is missing."""
    for name, block in (("table", table), ("parts", parts), ("operations", operations), ("memory", memory)):
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise ValueError(f"docs/speed.md has no <!-- {name} --> ... <!-- /{name} -->")
        page = f"{before}{begin}\n{block(numbers)}\n\n{end}{after}"
    return page


def main() -> None:
    """Write the page and its pictures."""
    numbers = read()
    PAGE.write_text(filled(PAGE.read_text(), numbers))
    draw_step(numbers, PICTURES / "speed_step.png")
    draw_growth(numbers, PICTURES / "speed_growth.png")


if __name__ == "__main__":
    sys.exit(main())
