"""Log a guidance search to Weights & Biases: heat map, curves over guidance scale, samples, and every point."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmf_lightning.evaluation.guidance_search.records import Record
from pmf_lightning.evaluation.guidance_search.space import show
from pmf_lightning.tracking import wandb_runs
from pmf_lightning.utils.precision import Number

KIND = "search_guidance"
PICTURES = {"maps": "guidance/heat_map", "lines": "guidance/curves", "samples": "guidance/samples"}


def send(found: Mapping[str, Any], options: Mapping[str, Any], out: Path, config: Mapping[str, Any]) -> None:
    """Log the results ``found`` by a search as one W&B run.

    Each point is a row with "guidance/omega" and the distance under the name of its curve. The run is grouped with
    those of the same study, by the checkpoint's ``config``. ``options`` are those of conf/logger/wandb.yaml, ``out`` is
    the folder of results. Raises UserError for an error of W&B.
    """
    import wandb

    labels = wandb_runs.labels(config, out, wandb_runs.hydra_job(), KIND)
    name = options["name"] or f"{KIND} {config['name']} {out.name}"
    best: Record = found["best"]
    settings = {"best": {"ema": best.point.ema, **best.point.options}, **config}
    run_id = wandb_runs.new_id()
    run = wandb_runs.open_run({**options, "name": name}, labels, out, settings, run_id)
    complete = False
    try:
        run.define_metric("guidance/*", step_metric="guidance/omega")
        for row in rows(found["tried"]):
            run.log(row)
        run.log({key: wandb.Image(str(found[name])) for name, key in PICTURES.items()})
        for name in ("best", "final", "unguided"):
            if name in found:
                run.summary[f"guidance/{name}"] = found[name].fid
        complete = True
    finally:
        run.finish(exit_code=0 if complete else 1)
    if wandb_runs.is_offline(run):
        print(f"this search is stored on disk only; upload it: {wandb_runs.sync_command(out, run_id)}")


def rows(tried: Sequence[Record]) -> list[dict[str, Number]]:
    """Return a row per point with a distance, by omega; a curve has one average, steps, method and interval."""
    known = sorted((record for record in tried if record.fid is not None), key=lambda record: record.point.omega)
    return [{"guidance/omega": record.point.omega, _curve(record): record.fid} for record in known]


def _curve(record: Record) -> str:
    point, (low, high) = record.point, map(show, record.point.interval)
    return f"guidance/{point.ema} {point.steps}x{point.sampler}/t{low}-{high}"
