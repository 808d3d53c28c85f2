"""Evaluate a checkpoint or images, and write evaluation.json and a grid (command evaluate)."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from pmf_lightning.config import validate
from pmf_lightning.data.transforms import to_float
from pmf_lightning.distributed.collectives import on_all_ranks, rank_and_world
from pmf_lightning.distributed.launch import is_rank_zero, print_on_main, torchrun_group
from pmf_lightning.evaluation.battery.report import save_bars, score_table
from pmf_lightning.evaluation.battery.scores import FLAGS as BATTERY_FLAGS
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.image_files import KINDS, NPZ, PNG, ImageSaver
from pmf_lightning.evaluation.sample_sources import (
    SampleSource,
    evaluator_of,
    existing_images,
    images_of_checkpoint,
    judge_of,
)
from pmf_lightning.evaluation.scores import FLAGS, Scores
from pmf_lightning.pipeline.loading import with_last_run
from pmf_lightning.training.plots import save_grid
from pmf_lightning.utils.bounded_files import read_json
from pmf_lightning.utils.cache import atomic_write, check_not_there, no_empty_folder, writable
from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.provenance import versions
from pmf_lightning.utils.threads import one_if_busy

SHOWN, COLUMNS = 100, 10  # maximum number of images on the grid (from the first chunk), and its columns
REPORT, GRID, BARS = "evaluation.json", "grid.png", "ratios.png"
LATEST = "evaluation"  # the default of out=, which the next command replaces
PACKAGES = ("pmf_lightning", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as ``pmf_lightning.evaluate.evaluate`` describes it."""
    check(cfg)
    cfg = with_last_run(cfg)
    if cfg.get("battery") is not None:
        return evaluate_battery(cfg)
    with torchrun_group(cfg.device) as device, no_empty_folder(Path(cfg.out)), one_if_busy(device):
        out, subject = _opened(cfg, device)
        n = images_asked(cfg, subject, lambda: cfg.protocol.n)
        evaluator = on_all_ranks(lambda: evaluator_of(cfg, subject.shape, subject.classes, subject.config, device))
        saver = ImageSaver(cfg.save, out, n, SHOWN)
        _ = evaluator.network, evaluator.reference_features, evaluator.precision_recall_features
        started = time.perf_counter()
        scores = evaluator(subject.generate, n, subject.classes or 1, saver)  # classes of existing images are unknown
        report = {"metric": evaluator.name(scores.n), **subject.about, **described(cfg, evaluator, scores)}
        return _finished(report, subject, saver, out, n, started)


def _opened(cfg: DictConfig, device: torch.device) -> tuple[Path, SampleSource]:
    """Return the output folder and the source of the images, with a line about it printed; raises UserError."""
    out = on_all_ranks(lambda: writable(Path(cfg.out), "out"))
    subject = on_all_ranks(lambda: _source(cfg, device))
    print_on_main(subject.summary())
    return out, subject


def _source(cfg: DictConfig, device: torch.device) -> SampleSource:
    """Return the source of the images: ``ckpt=``, or ``images=`` with the channels of ``data=`` if that is set."""
    if cfg.images is None:
        return images_of_checkpoint(cfg, device)
    return existing_images(cfg.images, 3 if cfg.get("data") is None else cfg.data.channels, cfg.background)


def _finished(
    report: dict[str, Any], subject: SampleSource, saver: ImageSaver, out: Path, n: int, started: float
) -> dict[str, Any]:
    """Return the report with times and files; write it and the grid of the first images, in place of earlier ones."""
    saver.finish()
    print_on_main(subject.conversions())
    report |= {
        "seconds": round(time.perf_counter() - started, 2),
        "images_per_second": round(n / (saver.latest - started), 2),
        "images": saver.path and str(saver.path),
        "grid": str(out / GRID),
    }
    if rank_and_world()[0] == 0:
        _remove_earlier(report, out)
        save_grid(to_float(saver.first_images), COLUMNS, out / GRID)
        with atomic_write(out / REPORT) as draft:
            draft.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _remove_earlier(report: dict[str, Any], out: Path) -> None:
    """Remove files of an earlier evaluation in ``out`` that ``report`` does not have, but not the images it judged."""
    if "bars" not in report:
        (out / BARS).unlink(missing_ok=True)
    older = earlier_images(out)
    used = [Path(one).expanduser().resolve() for one in (report["judged"], report["images"]) if one is not None]
    if older is not None and not any(older.resolve() in (one, *one.parents) for one in used):
        shutil.rmtree(older) if older.is_dir() else older.unlink()


def earlier_images(out: Path) -> Path | None:
    """Return the images in ``out`` that an earlier evaluation saved by its report; None if there are none."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # no report, or not one of this command
        found = out / Path(read_json(out / REPORT)["images"]).name
        return found if found.name in (PNG, NPZ) and found.exists() and not found.is_symlink() else None
    return None


def evaluate_battery(cfg: DictConfig) -> dict[str, Any]:
    """Score the images in all encoders of ``battery=``, in one pass; return evaluation.json on all ranks."""
    with torchrun_group(cfg.device) as device, no_empty_folder(Path(cfg.out)), one_if_busy(device):
        out, subject = _opened(cfg, device)
        setup = on_all_ranks(lambda: judge_of(cfg, subject))
        n = images_asked(cfg, subject, lambda: len(setup.source.held_out()) if setup.source.has_held_out else 50_000)
        judge = on_all_ranks(lambda: setup.open(device))
        saver = ImageSaver(cfg.save, out, n, SHOWN)
        _ = judge.real_features
        started = time.perf_counter()
        scores = judge(subject.generate, n, subject.classes, saver)
        report = {
            "metric": setup.name(n),
            **subject.about,
            "scores": scores.named(),
            **scores.as_dict(),
            "protocol": asdict(scores.protocol),
            "reference": str(cfg.battery.reference),
            "fingerprints": judge.battery.fingerprints(),
            "data": setup.source.name,
            **_surroundings(cfg, device),
            "bars": str(out / BARS),
        }
        if rank_and_world()[0] == 0:
            save_bars(scores, out / BARS)
            Console(width=max(100, Console().width)).print(
                score_table(scores, f"{report['metric']}: {cfg.ckpt or cfg.images}")
            )
        return _finished(report, subject, saver, out, n, started)


def check(cfg: DictConfig) -> None:
    """Check the options that need no weights, and that ``out`` has no result that must stay; raises UserError."""
    if (cfg.ckpt is None) == (cfg.images is None):
        given = "ckpt and images are not set" if cfg.ckpt is None else f"ckpt={cfg.ckpt} images={cfg.images}"
        raise UserError(f"{given}: give one of the two to evaluate")
    if cfg.save not in KINDS:
        raise UserError(f"save={cfg.save}: keep {' or '.join(KINDS)}")
    if cfg.images is not None and cfg.save != "none":
        raise UserError(f"save={cfg.save}: these images exist already, in images={cfg.images}; leave save out")
    validate.torch_device(cfg.device)
    out = Path(cfg.out)
    results = (out / name for name in (REPORT, GRID, BARS, NPZ, *([PNG] if cfg.save == "png" else [])))
    check_not_there(cfg.out, results, cfg.force or cfg.out == LATEST)
    if cfg.save == "png" and (out / PNG).exists() and out / PNG != earlier_images(out):
        raise UserError(f"out={cfg.out}: {out / PNG} is not of the evaluation there; set another out, or remove it")


def images_asked(cfg: DictConfig, subject: SampleSource, default: Callable[[], int]) -> int:
    """Return the number of images to evaluate, ``default()`` of a model's; raises UserError if there are fewer."""
    if subject.n is None:
        return cfg.n or default()
    n = cfg.n or subject.n
    if not 2 <= n <= subject.n:
        raise UserError(f"n={n}: {cfg.images} holds {subject.n} images; set n from 2 to that, or leave it out")
    return n


def described(cfg: DictConfig, evaluator: Evaluator, scores: Scores) -> dict[str, Any]:
    """Return the scores, the evaluation settings, the hardware and the versions."""
    extractor, protocol, reference = evaluator.extractor, evaluator.protocol, evaluator.reference
    return {
        "scores": scores.named(protocol, extractor.name),
        **scores.as_dict(),
        "protocol": asdict(protocol),
        "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint()},
        "reference": {**reference.file, "n": reference.n, "about": dict(reference.about)},
        "precision_recall_reference": None if evaluator.real is None else dict(evaluator.real.file),
        **_surroundings(cfg, evaluator.device),
    }


def _surroundings(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Return the batch size, the hardware and the versions."""
    return {
        "batch_size": cfg.batch_size,
        "world_size": rank_and_world()[1],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(PACKAGES),
    }


def show(report: dict[str, Any]) -> None:
    """Print the scores, the settings and the paths of the files."""
    if "bars" in report:
        _show_battery(report)
        return
    table = Table(title=f"{report['metric']}: {report['judged']}", show_header=False)
    for name, value in report["scores"].items():
        table.add_row(name, f"{value:.4f}")
    for name in ("ema", "steps", "sampler", "omega", "t_min", "t_max", "nfe", "seed", "images_per_second"):
        if report.get(name) is not None:
            table.add_row(name, str(report[name]))
    table.add_row("reference", report["reference"]["path"])
    for flag in report["flags"]:
        table.add_row(flag, FLAGS[flag])
    Console(width=max(100, Console().width)).print(table)
    print(f"{Path(report['grid']).with_name(REPORT)} and {report['grid']}")
    if report["images"]:
        print(f"images: {report['images']}")


def _show_battery(report: dict[str, Any]) -> None:
    """Print what the table of the encoders does not have: the means by their full names, flags and files."""
    for name, value in report["scores"].items():
        print(f"{name}: {value:.4g}")
    for flag in report["flags"]:
        print(f"{flag}: {BATTERY_FLAGS[flag]}")
    print(f"{Path(report['grid']).with_name(REPORT)}, {report['bars']} and {report['grid']}")


def run_and_show(cfg: DictConfig) -> None:
    """Evaluate and print the scores on rank 0."""
    report = run(cfg)
    if is_rank_zero():
        show(report)
