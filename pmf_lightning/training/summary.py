"""Finish a run: final grid, curves, printed table and summary.json."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
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
from pmf_lightning.utils.counted import counted

_UNLESS_ZERO = ("skipped_steps", "failed_saves", "thread_changes")  # printed if there were any
NOT_MEASURED = dict.fromkeys(("fd", "fd_floor", "n", "class_accuracy", "real_accuracy"))


def finish(parts: Parts, trainer: Trainer, callbacks: TrainingCallbacks, folder: Path) -> dict:
    """Draw the final grid and the curves, write summary.json, print the table; return the summary."""
    if not trainer.is_global_zero:
        return {}
    module, ema = parts.module, parts.settings.sampling["ema"]
    module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    evaluation = callbacks.evaluation
    grid = callbacks.grids and callbacks.grids.draw(module, ema, "final.png")
    for steps in evaluation.by_steps if grid and evaluation else ():
        callbacks.grids.draw(module, ema, f"final-{steps}steps.png", steps=steps)
    module.cpu()
    curves, time_bins = pictures(folder)
    # A stopped run has old numbers.
    measured = evaluation and evaluation.measured_at == trainer.global_step
    stopped = trainer.global_step < parts.settings.steps and callbacks.early_stop is None  # by a signal or max_time
    summary = {
        **(evaluation.summary(evaluation.latest if measured else None) if evaluation else NOT_MEASURED),
        **({"before": evaluation.before} if evaluation and evaluation.before else {}),
        "ema": ema,
        **(_sampling(parts, callbacks) if module.objective.samplers else {}),
        **(getattr(callbacks.grids, "latest", None) or {}),
        "images_per_second": round(callbacks.progress.overall_images_per_second, 1),
        "threads": callbacks.threads.chosen or torch.get_num_threads(),
        "thread_changes": callbacks.threads.changes,
        "steps": trainer.global_step,
        "wall_seconds": round(callbacks.progress.wall_seconds, 1),
        "checkpoint": str(callbacks.checkpoint.path),
        "best": callbacks.checkpoint.best,
        "grid": grid and str(grid),
        "curves": str(curves),
        "time_bins": time_bins and str(time_bins),
        "skipped_steps": callbacks.finite.skipped,
        "failed_saves": callbacks.checkpoint.failed,
        "stopped_early": stopped,
        "early_stopping": callbacks.early_stop,
    }
    with atomic_write(folder / "summary.json") as draft:
        draft.write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary, evaluation.display_names() if evaluation else {})
    if stopped:
        again = shlex.join(["python", "-m", "pmf_lightning.train", *resume_arguments(folder)])
        print(f"stopped at step {trainer.global_step} of {parts.settings.steps}; resume with: {again}")
    return summary


def _sampling(parts: Parts, callbacks: TrainingCallbacks) -> dict:
    """Return the sampling options of the evaluation, its network evaluations per image (NFE), and by_steps."""
    sampling = parts.settings.sampling
    return {
        "omega": sampling["omega"],
        "sampling_steps": sampling["steps"],
        "sampling_method": sampling["sampler"],
        "nfe": evaluations(parts, sampling["steps"]),
        "by_steps": _by_steps(parts, callbacks),
    }


def evaluations(parts: Parts, steps: int) -> int:
    """Return the network evaluations per image (NFE) of sampling with ``steps`` steps."""
    options = {name: parts.settings.sampling[name] for name in OPTIONS} | {"steps": steps}
    return network_evaluations(parts.module.objective, **options)


def _by_steps(parts: Parts, callbacks: TrainingCallbacks) -> dict[str, dict]:
    """Return the results at other numbers of sampling steps, each with its network evaluations (NFE)."""
    measured = callbacks.evaluation.by_steps if callbacks.evaluation else {}
    return {
        str(steps): {"nfe": evaluations(parts, steps), **callbacks.evaluation.short_summary(result)}
        for steps, result in measured.items()
    }


@rank_zero_only
def pictures(folder: Path) -> tuple[Path, Path | None]:
    """Plot the log of a run; return the paths of curves.png and time_bins.png (None without binned rows)."""
    log = folder / "metrics.jsonl"
    return save_curves(log, folder / "curves.png"), save_time_bins(log, folder / "time_bins.png")


def _listed(numbers: Mapping[str, float | int | None]) -> str:
    known = {name: value for name, value in numbers.items() if name != "nfe" and value is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in known.items())


def _print(summary: dict, titles: Mapping[str, str]) -> None:
    table = Table(title="summary", show_header=False)
    rows = dict(summary)
    if best := rows.pop("best"):
        rows["best.ckpt"] = f"{best['metric']} {best['value']:.4g} at step {best['step']}"
    for steps, numbers in rows.pop("by_steps", {}).items():
        rows[f"in {counted(int(steps), 'step')}, nfe {numbers['nfe']}"] = _listed(numbers)
    if before := rows.pop("before", {}):
        rows["before the first step"] = _listed(before)
    rows = {title: rows.pop(name) for name, title in titles.items()} | rows
    for name, value in rows.items():
        if value is not None and not (name in _UNLESS_ZERO and value == 0):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=max(100, Console().width)).print(table)
