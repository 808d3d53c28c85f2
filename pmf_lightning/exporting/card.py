"""Model card (README.md) of an exported folder, filled from the configuration and the files of the run."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.pipeline.sources import is_pipeline
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations
from pmf_lightning.utils.bounded_files import read_json

CARD, GRID, SUMMARY = "README.md", "grid.png", "summary.json"
USAGE = """```python
from pmf_lightning import HubGenerator  # pip install pmf_lightning

generator = HubGenerator.from_pretrained("FOLDER")
images = generator(LABELS, seed=0)  # [n, c, h, w] in [-1, 1]; omega=, steps= for other settings
```"""
UNKNOWN = "unknown"  # licence, unless the user states one
_RULES = ("metric", "protocol", "extractor")
# Scores in summary.json: "fd", "fd_lite0_floor", "fdr_held_out_mae", "sw_r", "class_accuracy" and the like.
_SCORE = re.compile(r"(fid|fd|fdr|sw_r|swr|is)(_|$)|(class|real)_accuracy$")


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run directory say: the summary, the command that started it, and the grid of samples."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    grid: Path | None = None


def facts_of(source: Path) -> RunFacts:
    """Return the facts of a run, of a checkpoint's run, or of an exported folder; empty facts for anything else."""
    folder = source.absolute()
    if not source.is_dir():
        if folder.parent.name != "checkpoints":  # a released file: what lies around it is of something else
            return RunFacts()
        folder = folder.parent.parent
    elif is_pipeline(folder.parent):  # ``located`` gives the network of a pipeline
        folder = folder.parent
    summary, run = _mapping(folder / SUMMARY), _mapping(folder / "run.json")
    command = run.get("command", summary.get("command"))
    grids = (file for file in (folder / "grids" / "final.png", folder / GRID) if file.is_file())
    return RunFacts(summary, command if isinstance(command, str) else None, next(grids, None))


def card(
    module: GenerativeModule,
    facts: RunFacts,
    usage: str,
    licence: str = UNKNOWN,
    command: str | None = None,
    steps: int | None = None,
) -> str:
    """Return the text of a card.

    Args:
        module: the exported model.
        facts: of its run; the card states only what is there.
        usage: a block of code that opens the folder.
        licence: an identifier of the hub, such as "mit".
        command: the command that exported the model.
        steps: sampling steps of the export; None: those of the model.
    """
    config = module.config
    head = {"license": licence, "library_name": "pmf_lightning", "pipeline_tag": "unconditional-image-generation"}
    head |= {"tags": ["pmf_lightning", "one-step", config["data"]["name"]]}
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _rows(module, facts, steps).items())
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {config['name']} on {config['data']['name']}",
        "An image generator of pmf_lightning; no code runs when its package loads this folder.",
        *([f"![Samples, one class a column]({GRID})"] if facts.grid else []),
        f"| | |\n|---|---|\n{rows}",
        f"## Use\n\n{usage}",
        "## Made by",
        *(f"```bash\n{line}\n```" for line in (facts.command, command) if line),
    ]
    return "\n\n".join(parts) + "\n"


def usage_of(module: GenerativeModule, folder: str) -> str:
    """Return a block of Python that opens the folder and makes images of the first and the last class."""
    return USAGE.replace("FOLDER", folder).replace("LABELS", str(example_labels(module)))


def example_labels(module: GenerativeModule) -> list[int]:
    """Return the labels of examples: the first and the last class."""
    return sorted({0, module.network.classes - 1})


def write_card(folder: Path, text: str, facts: RunFacts) -> None:
    """Write the card and its facts into a folder."""
    (folder / CARD).write_text(text)
    write_facts(folder, facts)


def write_facts(folder: Path, facts: RunFacts) -> None:
    """Copy the grid of samples into a folder, and write the scores, from which ``facts_of`` reads them again."""
    if facts.grid is not None and facts.grid.resolve() != (folder / GRID).resolve():
        shutil.copyfile(facts.grid, folder / GRID)
    kept = {name: value for name, value in facts.summary.items() if type(value) in (int, float)}
    kept |= {name: facts.summary[name] for name in (*_RULES, "ema") if isinstance(facts.summary.get(name), str)}
    if kept:
        (folder / SUMMARY).write_text(json.dumps(kept | {"command": facts.command}, indent=2) + "\n")


def _rows(module: GenerativeModule, facts: RunFacts, steps: int | None) -> dict[str, Any]:
    data, options = module.config["data"], {name: module.config["sampling"].get(name) for name in OPTIONS}
    options["steps"] = steps or options["steps"]
    weights = sum(weight.numel() for weight in module.network.parameters())
    rows = {
        "objective": type(module.objective).__name__,
        "data": f"{data['name']}, {module.network.classes} classes",
        "images": "x".join(str(size) for size in module.image_shape) + " (channels, height, width)",
        "parameters": f"{weights:,}",
        "weights": f"{module.average} (name of the average)",
        "sampling": ", ".join(f"{name}={value}" for name, value in options.items() if value is not None),
        "network evaluations per image (NFE)": network_evaluations(module.objective, **options),
    }
    scored = facts.summary.get("ema")
    if isinstance(scored, str) and scored != module.average:
        rows["weights of the scores"] = f"{scored} (other weights than these)"
    taken = facts.summary.get("sampling_steps")
    if type(taken) is int and taken != options["steps"]:
        rows["sampling steps of the scores"] = f"{taken} (this export takes {options['steps']})"
    return rows | _scores(facts.summary)


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the summary that are scores, with the number of images."""
    n = summary.get("n")
    of = f" ({n:,} images)" if type(n) is int else ""
    found = {
        f"{name.replace('_', ' ')}{of}": f"{value:.4g}"
        for name, value in summary.items()
        if _SCORE.match(name) and type(value) in (int, float)
    }
    rules = {name: summary[name] for name in _RULES if isinstance(summary.get(name), str)}
    return rules | found | ({"steps of training": summary["steps"]} if type(summary.get("steps")) is int else {})


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
