"""Create a workspace for all runs of a Weights & Biases project: python -m pmf_lightning.dashboard entity=me"""

import json
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pmf_lightning.cli import command
from pmf_lightning.tracking.workspace_layout import Layout, read_layout, tree
from pmf_lightning.utils.errors import UserError, suggestions

FORMATS = ("tree", "json")


def describe(cfg: DictConfig) -> Layout:
    """Return the workspace that ``cfg`` (conf/commands/dashboard.yaml) describes; raises UserError for bad input."""
    if not cfg.project:
        raise UserError(
            "project is not set; give the project that the runs are logged to, such as project=pmf_lightning"
        )
    if not cfg.entity and not cfg.dry_run:
        raise UserError("entity is not set; give the W&B user or team that the project belongs to, or dry_run=true")
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: there is no such format; {suggestions(str(cfg.format), FORMATS)}")
    options = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return read_layout(OmegaConf.to_container(options, resolve=True))


def make(layout: Layout) -> str:
    """Create the workspace on W&B and return its URL; raises UserError without package, login or project."""
    from pmf_lightning.tracking import wandb_runs  # imports PyTorch, which --help and dry_run=true do without

    try:
        from pmf_lightning.tracking.workspace import to_workspace
    except ModuleNotFoundError as error:
        raise UserError(
            f"dashboard: it needs {error.name}; pip install 'pmf_lightning[dashboard]', or print it with dry_run=true"
        ) from error
    if not wandb_runs.log_in("dashboard", "or print it with dry_run=true"):
        raise UserError("dashboard: WANDB_MODE keeps W&B offline; unset it, or print it with dry_run=true")
    return _saved(to_workspace(layout), f"entity={layout.entity} project={layout.project}")


def _saved(workspace: Any, place: str) -> str:
    import requests
    import wandb

    try:
        return workspace.save().url
    except (wandb.Error, requests.RequestException, ValueError) as error:
        raise UserError(f"{place}: W&B refuses the workspace ({' '.join(str(error).split())})") from error


@command("dashboard")
def main(cfg: DictConfig) -> None:
    """Create the workspace, or only print it with dry_run=true."""
    layout = describe(cfg)
    if cfg.dry_run:
        print(json.dumps(asdict(layout), indent=2) if cfg.format == "json" else tree(layout))
        return
    address = make(layout)
    panels = sum(len(section.panels) for section in layout.sections)
    print(f"{layout.name}: {panels} panels in {len(layout.sections)} sections at {address}")


if __name__ == "__main__":
    main()
