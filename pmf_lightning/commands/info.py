"""Collect the facts of one model, of every preset, and estimates of a training step (command info)."""

import json
import sys
from collections.abc import Sequence

from omegaconf import DictConfig
from rich.console import Console
from tqdm import tqdm

from pmf_lightning.config.compose import choices, compose
from pmf_lightning.config.job_arguments import job_overrides
from pmf_lightning.config.one_class import for_its_classes
from pmf_lightning.config.presets import on_its_data
from pmf_lightning.profiling import communication
from pmf_lightning.profiling.communication import Estimate
from pmf_lightning.profiling.model_cost import NotCountedError
from pmf_lightning.profiling.model_facts import Facts, find_facts
from pmf_lightning.profiling.tables import all_models, one_model
from pmf_lightning.utils.errors import UserError, suggestions

FORMATS = ("table", "json")


def info(overrides: Sequence[str] = ()) -> list[Facts]:
    """Return the facts of the model that ``overrides`` describe, or of every preset with "every_model=true".

    Without an override of data or experiment, a preset uses its default data. Raises UserError.
    """
    return _facts(compose(on_its_data(overrides), "info"), overrides)


def _facts(cfg: DictConfig, overrides: Sequence[str]) -> list[Facts]:
    """Return the facts of the model of ``cfg``, or of every preset with ``overrides``; raises UserError."""
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: there is no such format; {suggestions(str(cfg.format), FORMATS)}")
    if not cfg.every_model:
        cfg, unguided = for_its_classes(cfg)
        if unguided:
            print(unguided, file=sys.stderr)
        return [find_facts(cfg)]
    if chosen := [override for override in overrides if override.startswith("model=")]:
        raise UserError(f"every_model=true {chosen[0]}: choose one of the two")
    found = [_preset(name, overrides) for name in tqdm(choices("model"), "presets", leave=False, disable=None)]
    return [facts for facts in found if facts is not None]


def scaling(overrides: Sequence[str] = ()) -> list[Estimate]:
    """Return the estimates of a training step for each of ``gpus=``, an empty list without; raises UserError."""
    return _estimates(compose(on_its_data(overrides), "info"))


def _estimates(cfg: DictConfig) -> list[Estimate]:
    if cfg.gpus is None:
        return []
    if cfg.every_model:
        raise UserError(f"every_model=true gpus={list(cfg.gpus)}: an estimate is of one model; set model=")
    return communication.estimate(for_its_classes(cfg)[0])


def _preset(name: str, overrides: Sequence[str]) -> Facts | None:
    """Return the facts of a preset; None, with a line on stderr, if its costs are not counted."""
    try:
        return find_facts(for_its_classes(compose(on_its_data([f"model={name}", *overrides]), "info"))[0])
    except NotCountedError as error:
        print(f"left out: model={name} ({error})", file=sys.stderr)
        return None
    except UserError as error:
        raise UserError(f"model={name}: {error}") from error


def run_and_show(cfg: DictConfig) -> None:
    """Print the facts and estimates that the command line requests, as tables or JSON."""
    overrides = job_overrides()
    if (completed := on_its_data(overrides)) != overrides:  # in a multirun, each job has a model of its own
        cfg = compose(completed, "info")
    models, steps = _facts(cfg, overrides), _estimates(cfg)
    if cfg.format == "json":
        tables = [facts.as_json() for facts in models]
        if steps:
            tables[0]["estimates"] = communication.as_json(steps)
        print(json.dumps(tables if cfg.every_model else tables[0], indent=2))
        return
    width = max(100, Console().width)
    Console(width=width).print(all_models(models) if cfg.every_model else one_model(models[0]))
    if steps:  # a narrow console would truncate the many columns
        Console(width=max(communication.WIDTH, width)).print("", communication.table(cfg, steps))
