"""The best way to sample a checkpoint: python -m pmf_lightning.search_guidance ckpt=runs/... reference=stats.npz

Averages x guidance scales x intervals x steps (x methods) with few images each and the same noise, then the best with
many, and the same without guidance beside it.
"""

import copy
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from pmf_lightning import checks, weights_folder
from pmf_lightning.assemble import find_checkpoint, load_with_averages, make_part
from pmf_lightning.cache import digest
from pmf_lightning.command import command
from pmf_lightning.data.crop import CROP_RULE
from pmf_lightning.data.dataset import Source
from pmf_lightning.errors import UserError, near
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.features import file_sha256
from pmf_lightning.evaluation.launch import is_main, joined
from pmf_lightning.evaluation.opening import DATA, open_evaluator
from pmf_lightning.evaluation.ranks import from_main, together
from pmf_lightning.evaluation.scores import FLAGS
from pmf_lightning.folders import writable
from pmf_lightning.guidance_search import report
from pmf_lightning.guidance_search.maps import save_lines, save_maps
from pmf_lightning.guidance_search.measure import Bench
from pmf_lightning.guidance_search.points import Axes, Point, show
from pmf_lightning.guidance_search.records import Record, Records
from pmf_lightning.guidance_search.space import judged_point, make_axes
from pmf_lightning.guidance_search.strategy import STRATEGIES, search_by
from pmf_lightning.module import GenerativeModule
from pmf_lightning.pictures import save_grid
from pmf_lightning.sample import prepare_decoder
from pmf_lightning.sampling import network_evaluations

COLUMNS = 10  # of the grid of samples
PASSED_ON = ("protocol.", "extractor.", "data=", "data.", "cache_dir=")  # arguments that the commands of best.json need


def search(cfg: DictConfig) -> dict[str, Any]:
    """Search as ``cfg`` (conf/search_guidance.yaml) says.

    Returns records ("best" and "tried" of n images; "final" and "unguided" of n_final), paths ("results", "maps",
    "lines", "samples", "best_json"), and "edges" and "names", which ``show_result`` prints. All ranks call it and
    return the same; rank 0 writes. Raises UserError for bad input, before long work.
    """
    check(cfg)
    with joined(cfg.device) as device:
        out = together(lambda: writable(Path(cfg.out), "out"))
        module, averages = together(lambda: load_with_averages(cfg.ckpt))
        axes = together(lambda: _axes(cfg, module, averages))
        evaluator = together(lambda: _evaluator(cfg, module, device))
        module.to(device)
        records = from_main(lambda: Records(out / "points"))
        bench = Bench(module, averages, cfg.seed, conditions(cfg, evaluator), records)
        _announce(cfg, axes, module, evaluator)
        found, tried = _try_all(cfg, axes, bench, evaluator)
        last = {} if cfg.n_final is None else _measure_last(cfg, bench, evaluator, found.point)
        paths = from_main(lambda: _write(cfg, out, axes, tried, found, last, evaluator, bench))
    names = {n: evaluator.name(n) for n in (cfg.n, cfg.n_final) if n is not None}
    notes = {"edges": report.edges(found.point, axes), "names": names}
    return {"best": found, "tried": tried, **last, **paths, **notes}


def check(cfg: DictConfig) -> None:
    """Check what needs no file; raises UserError."""
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise UserError("ckpt is not set; give a run directory, a checkpoint file or a folder of weights")
    for name, least in {"n": 2, "n_final": 2, "chunk": 1, "shown": 1}.items():
        if cfg[name] is not None and cfg[name] < least:
            raise UserError(f"{name}={cfg[name]}: set it to {least} or more")
    if cfg.strategy not in STRATEGIES:
        raise UserError(f"strategy={cfg.strategy}: there is no such strategy; {near(str(cfg.strategy), STRATEGIES)}")
    checks.torch_device(cfg.device)


def conditions(cfg: DictConfig, evaluator: Evaluator) -> dict[str, str]:
    """Return what every number of the search depends on besides the point, n and seed."""
    folder = weights_folder.is_weights_folder(cfg.ckpt)
    file = Path(cfg.ckpt) / weights_folder.WEIGHTS if folder else find_checkpoint(cfg.ckpt)
    reference = evaluator.reference
    return {
        "checkpoint": file_sha256(file),
        "decoder": str(cfg.decoder.weights),
        "protocol": evaluator.protocol.name,
        "rules": digest(repr(evaluator.protocol)),
        "extractor": evaluator.extractor.fingerprint(),
        "reference": digest(reference.mu.numpy().tobytes().hex(), reference.sigma.numpy().tobytes().hex()),
    }


def _axes(cfg: DictConfig, module: GenerativeModule, averages: Mapping[str, Any]) -> Axes:
    if not module.objective.methods:
        raise UserError(f"ckpt={cfg.ckpt}: {module.config['name']} makes no images to judge; give a generator")
    return make_axes(cfg, module, list(averages))


def _evaluator(cfg: DictConfig, module: GenerativeModule, device: torch.device) -> Evaluator:
    prepare_decoder(module, cfg.decoder.weights)
    scale, channels = (1, module.network.channels) if module.decoder is None else (module.decoder.scale, 3)
    return open_evaluator(
        make_part(cfg, "protocol"),
        make_part(cfg, "extractor"),
        cfg.reference,
        chunk=cfg.chunk,
        device=device,
        resolution=module.network.resolution * scale,
        channels=channels,
        classes=module.network.classes,
        crop=CROP_RULE if "root" in module.config["data"] else None,
        source=_data_at_hand(cfg, module),
        cache_dir=cfg.cache_dir,
    )


def _data_at_hand(cfg: DictConfig, module: GenerativeModule) -> Source | None:
    """Return the data that ``data=`` names, or those of the checkpoint; None where they are not wanted."""
    if not (cfg.extractor.get("_partial_", False) or cfg.reference == DATA):
        return None
    return make_part(cfg if cfg.get("data") is not None else OmegaConf.create(module.config), "data")


def _announce(cfg: DictConfig, axes: Axes, module: GenerativeModule, evaluator: Evaluator) -> None:
    """Print what is about to happen."""
    if not is_main():
        return
    values = {"ema": axes.ema, "omega": axes.omega, "steps": axes.steps, "method": axes.method}
    listed = [f"{name} {', '.join(map(show, tried))}" for name, tried in values.items()]
    intervals = ", ".join(f"[{show(low)}, {show(high)}]" for low, high in axes.interval)
    costs = [network_evaluations(module.objective, **point.options) for point in axes.grid()]
    spread = f"{min(costs)}" if min(costs) == max(costs) else f"{min(costs)} to {max(costs)}"
    count = f"{'at most ' if cfg.strategy == 'coordinate' else ''}{len(axes):,} points of {cfg.n:,} images"
    print(f"{module.config['name']}: {'; '.join(listed)}; intervals {intervals}")
    print(f"  {count}, {spread} network evaluation(s) each: {evaluator.name(cfg.n)}")


def _try_all(cfg: DictConfig, axes: Axes, bench: Bench, evaluator: Evaluator) -> tuple[Record, list[Record]]:
    """Measure points by the strategy; return the best record and all of them, in the order of the grid."""
    together(lambda: evaluator.network)
    few = copy.copy(evaluator)  # Frechet distance and inception score alone: a search needs no others
    few.reference = replace(evaluator.reference, features=None, images=None)
    seen: dict[Point, Record] = {}
    bar = tqdm(total=len(axes), desc="points", unit="point", disable=not is_main())

    def number(point: Point) -> float | None:
        if point not in seen:
            seen[point] = bench.measure(point, cfg.n, few, "distance")
            bar.update()
            best = min(seen.values(), key=lambda record: math.inf if record.fid is None else record.fid)
            if best.fid is not None:
                bar.set_postfix_str(f"best {best.fid:.4g} at {best.point}")
        return seen[point].fid

    with bar:
        best = search_by(cfg.strategy, axes, judged_point(bench.module, axes), number)
    if best is None:
        raise UserError(f"ckpt={cfg.ckpt}: at no point are its images finite; it has diverged, take another checkpoint")
    return seen[best], [seen[point] for point in axes.grid() if point in seen]


def _measure_last(cfg: DictConfig, bench: Bench, evaluator: Evaluator, best: Point) -> dict[str, Record]:
    """Measure the best point with many images and with all scores, and the same without guidance."""
    points = {"final": best, "unguided": replace(best, omega=1)}
    return {name: bench.measure(point, cfg.n_final, evaluator, "all scores") for name, point in points.items()}


def _write(
    cfg: DictConfig,
    out: Path,
    axes: Axes,
    tried: list[Record],
    found: Record,
    last: dict[str, Record],
    evaluator: Evaluator,
    bench: Bench,
) -> dict[str, Path]:
    """Write table, pictures, samples at the best point and best.json; return their paths."""
    name = evaluator.name(cfg.n)
    commands = _command_lines(cfg, found.point)
    return {
        "results": report.write_csv([*tried, *last.values()], out / "results.csv"),
        "maps": save_maps(tried, axes, found.point, name, out / "heat_map.png"),
        "lines": save_lines(tried, axes, found.point, name, out / "curves.png"),
        "samples": _draw(cfg, bench, found.point, out / "samples.png"),
        "best_json": report.write_best(out / "best.json", found, last, commands),
    }


def _draw(cfg: DictConfig, bench: Bench, best: Point, path: Path) -> Path:
    """Draw the first images at the best point."""
    labels, generate = torch.arange(cfg.shown) % bench.module.network.classes, bench.generator(best)
    parts = [generate(labels[first : first + cfg.chunk], first).cpu() for first in range(0, cfg.shown, cfg.chunk)]
    return save_grid(torch.cat(parts), COLUMNS, path)


def _command_lines(cfg: DictConfig, best: Point) -> dict[str, str]:
    """Return how to measure the best point again, and how to draw from it."""
    base = [f"ckpt={cfg.ckpt}", *best.arguments, f"seed={cfg.seed}", f"device={cfg.device}"]
    base += [] if cfg.decoder.weights is None else [f"decoder.weights={cfg.decoder.weights}"]
    rules = [f"protocol={cfg.protocol.name}", f"extractor={cfg.extractor.name}", f"reference={cfg.reference}"]
    rules += [argument for argument in sys.argv[1:] if argument.startswith(PASSED_ON)]
    n = cfg.n if cfg.n_final is None else cfg.n_final
    return {
        "evaluate": shlex.join(["python", "-m", "pmf_lightning.evaluate", *base, *rules, f"n={n}"]),
        "sample": shlex.join(["python", "-m", "pmf_lightning.sample", *base]),
    }


def show_result(found: dict[str, Any]) -> None:
    """Print the table, where the grid may have been too small, and where everything lies."""
    last = [("best", found["final"]), ("without guidance", found["unguided"])] if "final" in found else []
    report.print_table(found["tried"], last, found["names"])
    for edge in found["edges"]:
        print(f"note: {edge}")
    for flag in found.get("final", found["best"]).scores["flags"]:
        print(f"note: {flag}: {FLAGS[flag]}")
    print(f"the best: {found['best'].point}; how to use it: {found['best_json']}")
    print(f"{found['maps']}, {found['lines']}, {found['samples']} and {found['results']}")


@command("search_guidance")
def main(cfg: DictConfig) -> None:
    """Search as the command line says and print what was found."""
    found = search(cfg)
    if is_main():
        show_result(found)


if __name__ == "__main__":
    main()
