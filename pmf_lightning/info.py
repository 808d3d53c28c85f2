"""What a model is and what it costs, beside its paper's numbers: python -m pmf_lightning.info model=pmf_b16"""

import json
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from tqdm import tqdm

from pmf_lightning.cli import command
from pmf_lightning.config.compose import choices, compose
from pmf_lightning.config.presets import published
from pmf_lightning.profiling import communication
from pmf_lightning.profiling.communication import Estimate
from pmf_lightning.profiling.model_facts import Facts, find_facts
from pmf_lightning.profiling.spaces import NoFlowError
from pmf_lightning.profiling.tables import all_models, one_model
from pmf_lightning.utils.errors import UserError, suggestions

FORMATS = ("table", "json")


def info(overrides: Sequence[str] = ()) -> list[Facts]:
    """Return the facts of the model that ``overrides`` describe, or of every preset with "every_model=true".

    Without a choice of data, or of an experiment, a preset stands on the data that it is made for. Raises UserError.
    """
    cfg = compose(_on_its_data(overrides), "info")
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: there is no such format; {suggestions(str(cfg.format), FORMATS)}")
    if not cfg.every_model:
        return [find_facts(cfg)]
    if chosen := [override for override in overrides if override.startswith("model=")]:
        raise UserError(f"every_model=true {chosen[0]}: choose one of the two")
    found = [_preset(name, overrides) for name in tqdm(choices("model"), "presets", leave=False, disable=None)]
    return [facts for facts in found if facts is not None]


def scaling(overrides: Sequence[str] = ()) -> list[Estimate]:
    """Return the estimates of a training step on each of ``gpus=``, none without; raises UserError."""
    cfg = compose(_on_its_data(overrides), "info")
    if cfg.gpus is None:
        return []
    if cfg.every_model:
        raise UserError(f"every_model=true gpus={list(cfg.gpus)}: estimates are of one model; set model=")
    return communication.estimate(cfg)


def _preset(name: str, overrides: Sequence[str]) -> Facts | None:
    """Return the facts of a preset; None, said on stderr, where its objective is of a kind without them."""
    try:
        return find_facts(compose(_on_its_data([f"model={name}", *overrides]), "info"))
    except NoFlowError as error:
        print(f"left out: model={name} ({error})", file=sys.stderr)
        return None
    except UserError as error:
        raise UserError(f"model={name}: {error}") from error


def _on_its_data(overrides: Sequence[str]) -> list[str]:
    """Add the data that the model is made for, unless the overrides say which."""
    models = [override.removeprefix("model=") for override in overrides if override.startswith("model=")]
    said = any(override.startswith(("data=", "experiment=", "+experiment=")) for override in overrides)
    if said or not models or models[-1] not in published():
        return list(overrides)
    return [f"data={published()[models[-1]].data}", *overrides]


@command("info")
def _main(cfg: DictConfig) -> None:
    overrides = HydraConfig.get().overrides.task
    models, steps = info(overrides), scaling(overrides)
    if cfg.format == "json":
        tables = [facts.as_json() for facts in models]
        if steps:
            tables[0]["estimates"] = communication.as_json(steps)
        print(json.dumps(tables if cfg.every_model else tables[0], indent=2))
        return
    width = max(100, Console().width)
    Console(width=width).print(all_models(models) if cfg.every_model else one_model(models[0]))
    if steps:  # a table of many columns, which a narrow console would cut to nothing
        Console(width=max(communication.WIDTH, width)).print(
            "", communication.table(compose(_on_its_data(overrides), "info"), steps)
        )


def main() -> None:
    """Print what the command line asks for; model=all is every preset, although no file of that name exists."""
    sys.argv[1:] = ["every_model=true" if argument == "model=all" else argument for argument in sys.argv[1:]]
    _main()


if __name__ == "__main__":
    main()
