"""Small models to play with: random weights that make images of every noise and class, as checkpoints hold them."""

from functools import cache

import torch
from shrunk import backbone

from pmf_lightning import build, compose
from pmf_lightning.utils import rng


@cache
def module(model="pmf_tiny", *overrides):
    """A module with random weights; fresh ones have a last layer of zeros."""
    made = build(compose([f"model={model}", "data=digits", *backbone(model), *overrides])).eval()
    with torch.no_grad():
        for name, weight in made.network.named_parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=rng.generator(0, model, name)) / weight.shape[-1] ** 0.5
    return made


def write_run(folder, model="pmf_tiny", *overrides):
    """Write a run directory whose checkpoint has one average of its own; return the folder."""
    made = module(model, *overrides)
    raw = made.network.state_dict()
    average = {name: 1.2 * value for name, value in raw.items()}
    checkpoint = {
        "state_dict": {f"network.{name}": value for name, value in raw.items()},
        "ema": {made.config["sampling"]["ema"]: average},
        "config": made.config,
        "global_step": 3,
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder
