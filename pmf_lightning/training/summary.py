"""Finish a run: final grid, curves, printed table and summary.json."""

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from pmf_lightning.config.job_arguments import resume_arguments
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations
from pmf_lightning.training.callbacks.build import TrainingCallbacks
from pmf_lightning.training.plots import save_curves, save_time_bins
from pmf_lightning.training.prepare import Parts
from pmf_lightning.utils.cache import atomic_write

NOT_MEASURED = dict.fromkeys(("fd", "fd_floor", "n", "class_accuracy", "real_accuracy"))


def finish(parts: Parts, trainer: Trainer, hands: TrainingCallbacks, folder: Path, started: float) -> dict:
    """Draw the final grid and the curves, write summary.json, print the table; return the summary.

    ``started`` is time.perf_counter() at the start of the run.
    """
    if not trainer.is_global_zero:
        return {}
    module, ema = parts.module, parts.settings.sampling["ema"]
    module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    grid = hands.grids and hands.grids.draw(module, ema, "final.png")
    for steps in hands.quality.by_steps if grid and hands.quality else ():
        hands.grids.draw(module, ema, f"final-{steps}steps.png", steps=steps)
    module.cpu()
    curves, time_bins = pictures(folder)
    measured = hands.quality and hands.quality.measured_at == trainer.global_step  # a stopped run has old numbers
    stopped = trainer.global_step < parts.settings.steps and hands.early_stop is None  # by a signal or max_time
    summary = {
        **(hands.quality.summary(hands.quality.latest if measured else None) if hands.quality else NOT_MEASURED),
        "ema": ema,
        **(_sampling(parts, hands) if module.objective.samplers else {}),
        **(getattr(hands.grids, "latest", None) or {}),
        "images_per_second": round(hands.progress.images_per_second, 1),
        "steps": trainer.global_step,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "checkpoint": str(hands.checkpoint.path),
        "best": hands.checkpoint.best,
        "grid": grid and str(grid),
        "curves": str(curves),
        "time_bins": time_bins and str(time_bins),
        "skipped_steps": hands.finite.skipped,
        "failed_saves": hands.checkpoint.failed,
        "stopped_early": stopped,
        "early_stopping": hands.early_stop,
    }
    with atomic_write(folder / "summary.json") as draft:
        draft.write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary, hands.quality.titles() if hands.quality else {})
    if stopped:
        again = shlex.join(["python", "-m", "pmf_lightning.train", *resume_arguments(folder)])
        print(f"stopped at step {trainer.global_step} of {parts.settings.steps}; resume with: {again}")
    return summary


def _sampling(parts: Parts, hands: TrainingCallbacks) -> dict:
    """Return the sampling options of the evaluation, its network evaluations per image (NFE), and by_steps."""
    sampling = parts.settings.sampling
    return {
        "omega": sampling["omega"],
        "sampling_steps": sampling["steps"],
        "sampling_method": sampling["sampler"],
        "nfe": evaluations(parts, sampling["steps"]),
        "by_steps": _by_steps(parts, hands),
    }


def evaluations(parts: Parts, steps: int) -> int:
    """Return the network evaluations per image (NFE) of sampling with ``steps`` steps."""
    options = {name: parts.settings.sampling[name] for name in OPTIONS} | {"steps": steps}
    return network_evaluations(parts.module.objective, **options)


def _by_steps(parts: Parts, hands: TrainingCallbacks) -> dict[str, dict]:
    """Return the results at other numbers of sampling steps, each with its network evaluations (NFE)."""
    measured = hands.quality.by_steps if hands.quality else {}
    return {
        str(steps): {"nfe": evaluations(parts, steps), **hands.quality.brief(result)}
        for steps, result in measured.items()
    }


@rank_zero_only
def pictures(folder: Path) -> tuple[Path, Path | None]:
    """Plot the log of a run; return the paths of curves.png and time_bins.png (None without binned rows)."""
    log = folder / "metrics.jsonl"
    return save_curves(log, folder / "curves.png"), save_time_bins(log, folder / "time_bins.png")


def _print(summary: dict, titles: Mapping[str, str]) -> None:
    table = Table(title="summary", show_header=False)
    rows = dict(summary)
    if best := rows.pop("best"):
        rows["best.ckpt"] = f"{best['metric']} {best['value']:.4g} at step {best['step']}"
    for steps, numbers in rows.pop("by_steps", {}).items():
        others = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items() if name != "nfe")
        rows[f"in {steps} step(s), nfe {numbers['nfe']}"] = ", ".join(others)
    rows = {title: rows.pop(name) for name, title in titles.items()} | rows
    for name, value in rows.items():
        if value is not None and (name, value) not in (("skipped_steps", 0), ("failed_saves", 0)):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=max(100, Console().width)).print(table)
