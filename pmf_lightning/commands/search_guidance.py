"""Evaluate sampling settings and write tables, maps and the best one (command search_guidance)."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pmf_lightning.config import search_path, validate
from pmf_lightning.config.groups import choices
from pmf_lightning.distributed.collectives import on_all_ranks, on_rank_zero
from pmf_lightning.distributed.launch import is_rank_zero, torchrun_group
from pmf_lightning.evaluation.evaluator import Evaluator
from pmf_lightning.evaluation.guidance_search import report
from pmf_lightning.evaluation.guidance_search.maps import save_lines, save_maps
from pmf_lightning.evaluation.guidance_search.measure import PointEvaluator
from pmf_lightning.evaluation.guidance_search.records import Record, Records
from pmf_lightning.evaluation.guidance_search.search import STRATEGIES, measure_last, try_all
from pmf_lightning.evaluation.guidance_search.space import SamplingSetting, SearchSpace, make_axes
from pmf_lightning.evaluation.guidance_search.wandb import send
from pmf_lightning.evaluation.sample_sources import evaluator_of
from pmf_lightning.evaluation.scores import FLAGS
from pmf_lightning.pipeline.checkpoints import weights_file
from pmf_lightning.pipeline.images import check_generates, prepare_decoder
from pmf_lightning.pipeline.loading import load_every_average, with_last_run
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import located
from pmf_lightning.sampling.generate import network_evaluations
from pmf_lightning.tracking import wandb_runs
from pmf_lightning.training.plots import save_grid
from pmf_lightning.utils.cache import digest, file_sha256, no_empty_folder, writable
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.pasted import path_argument
from pmf_lightning.utils.threads import one_if_busy

COLUMNS = 10  # of the grid of samples
# Overrides that the command "evaluate" of best.json repeats.
PASSED_ON = ("protocol=", "protocol.", "extractor=", "extractor.", "data=", "data.", "cache_dir=")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Search as ``pmf_lightning.search_guidance.search`` describes it."""
    check(cfg)
    cfg = with_last_run(cfg)
    with torchrun_group(cfg.device) as device, no_empty_folder(Path(cfg.out)), one_if_busy(device):
        out = on_all_ranks(lambda: writable(Path(cfg.out), "out"))
        module, averages = on_all_ranks(lambda: load_every_average(cfg.ckpt, cfg.trust))
        axes = on_all_ranks(lambda: _axes(cfg, module, averages))
        evaluator = on_all_ranks(lambda: _evaluator(cfg, module, device))
        module.to(device)
        records = on_rank_zero(lambda: Records(out / "points"))
        bench = PointEvaluator(module, averages, cfg.seed, conditions(cfg, evaluator), records)
        if is_rank_zero():
            costs = [network_evaluations(module.objective, **point.options) for point in axes.grid()]
            report.announce(module.config["name"], axes, cfg.strategy, costs, evaluator.name(cfg.n))
        found, tried = try_all(bench, axes, cfg.strategy, cfg.n, evaluator)
        if found is None:
            raise UserError(
                f"ckpt={cfg.ckpt}: its images are not finite at any point; the model diverged, give another checkpoint"
            )
        last = {} if cfg.n_final is None else measure_last(bench, found.point, cfg.n_final, evaluator)
        paths = on_rank_zero(lambda: _write(cfg, out, axes, tried, found, last, evaluator.name(cfg.n), bench))
    names = {n: evaluator.name(n) for n in (cfg.n, cfg.n_final) if n is not None}
    notes = {"edges": report.edges(found.point, axes), "names": names}
    result = {"best": found, "tried": tried, **last, **paths, **notes}
    if cfg.logger.get("wandb") is not None and is_rank_zero():
        send(result, cfg.logger.wandb, out, module.config)
    return result


def check(cfg: DictConfig) -> None:
    """Check the options that need no file; raises UserError."""
    if cfg.strategy not in STRATEGIES:
        raise UserError(
            f"strategy={cfg.strategy}: there is no such strategy; {suggestions(str(cfg.strategy), STRATEGIES)}"
        )
    validate.torch_device(cfg.device)
    if others := sorted(set(cfg.logger) - {"wandb"}):
        raise UserError(f"logger={others[0]}: a search writes files, and logs to Weights & Biases with logger=wandb")
    if cfg.logger.get("wandb") is not None and is_rank_zero():
        wandb_runs.check(cfg.logger.wandb)


def conditions(cfg: DictConfig, evaluator: Evaluator) -> dict[str, str]:
    """Return everything that a score depends on besides the sampling setting, n and seed."""
    reference = evaluator.reference
    return {
        "checkpoint": file_sha256(weights_file(located(cfg.ckpt))),
        "decoder": str(cfg.decoder.weights),
        "protocol": evaluator.protocol.name,
        "rules": digest(repr(evaluator.protocol)),
        "extractor": evaluator.extractor.fingerprint(),
        "reference": digest(reference.mu.numpy().tobytes().hex(), reference.sigma.numpy().tobytes().hex()),
        "precision_recall_reference": "" if evaluator.real is None else evaluator.real.file["sha256"],
    }


def _axes(cfg: DictConfig, module: GenerativeModule, averages: Mapping[str, Any]) -> SearchSpace:
    check_generates(f"ckpt={cfg.ckpt}", module)
    return make_axes(cfg, module, list(averages))


def _evaluator(cfg: DictConfig, module: GenerativeModule, device: torch.device) -> Evaluator:
    prepare_decoder(module, cfg.decoder.weights)
    return evaluator_of(cfg, module.image_shape, module.network.classes, module.config, device)


def _write(
    cfg: DictConfig,
    out: Path,
    axes: SearchSpace,
    tried: list[Record],
    found: Record,
    last: dict[str, Record],
    name: str,
    bench: PointEvaluator,
) -> dict[str, Path]:
    """Write the table, plots of the distance ``name``, samples at the best point and best.json; return their paths."""
    commands = _command_lines(cfg, found.point)
    return {
        "results": report.write_csv([*tried, *last.values()], out / "results.csv"),
        "maps": save_maps(tried, axes, found.point, name, out / "heat_map.png"),
        "lines": save_lines(tried, axes, found.point, name, out / "curves.png"),
        "samples": save_grid(bench.draw(found.point, cfg.shown, cfg.batch_size), COLUMNS, out / "samples.png"),
        "best_json": report.write_best(out / "best.json", found, last, commands),
    }


def _command_lines(cfg: DictConfig, best: SamplingSetting) -> dict[str, str]:
    """Return the commands that evaluate the best point again and sample from it."""
    base = [*search_path.arguments(), *best.arguments, f"seed={cfg.seed}", f"device={cfg.device}"]
    base += [f"trust=[{','.join(cfg.trust)}]"] if cfg.trust else []
    base += [] if cfg.decoder.weights is None else [f"decoder.weights={cfg.decoder.weights}"]
    repeated = [argument for argument in sys.argv[1:] if argument.lstrip("+").startswith(PASSED_ON)]
    rules = [f"reference={cfg.reference}"]
    if cfg.precision_recall_reference is not None:
        rules.append(f"precision_recall_reference={cfg.precision_recall_reference}")
    for group in ("protocol", "extractor"):  # a name may be the user's own, which is no choice of the group
        given = any(argument.startswith(f"{group}=") for argument in repeated)
        rules += [f"{group}={cfg[group].name}"] if not given and cfg[group].name in choices(group) else []
    rules += repeated
    n = cfg.n if cfg.n_final is None else cfg.n_final
    ckpt = path_argument("ckpt", cfg.ckpt)
    return {
        "evaluate": f"python -m pmf_lightning.evaluate {ckpt} {shlex.join([*base, *rules, f'n={n}'])}",
        "sample": f"python -m pmf_lightning.sample {ckpt} {shlex.join(base)}",
    }


def show_result(found: dict[str, Any]) -> None:
    """Print the table, notes where the best point is at an edge of the grid, and the paths."""
    last = [("best", found["final"]), ("without guidance", found["unguided"])] if "final" in found else []
    report.print_table(found["tried"], last, found["names"])
    for edge in found["edges"]:
        print(f"note: {edge}")
    for flag in found.get("final", found["best"]).scores["flags"]:
        print(f"note: {flag}: {FLAGS[flag]}")
    print(f"the best: {found['best'].point}; how to use it: {found['best_json']}")
    print(f"{found['maps']}, {found['lines']}, {found['samples']} and {found['results']}")


def run_and_show(cfg: DictConfig) -> None:
    """Search and print the result on rank 0."""
    found = run(cfg)
    if is_rank_zero():
        show_result(found)
