"""A small model as files hold it: its configuration and weights, written as a checkpoint or a folder of weights."""

import copy
from functools import cache

import torch

from pmf_lightning import build, compose
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.weights_folder import StoredWeights, WeightsInfo


@cache
def _module():
    return build(compose(["model=pmf_tiny", "data=digits"]))


def config():
    return copy.deepcopy(_module().config)


def checkpoint(stored=None):
    """What last.ckpt holds of the parts that loading reads."""
    weights = _module().network.state_dict()
    average = {name: value.clone() for name, value in weights.items()}
    return {
        "state_dict": {f"network.{name}": value for name, value in weights.items()},
        "ema": {_module().config["sampling"]["ema"]: average},
        "config": config() if stored is None else stored,
        "global_step": 3,
    }


def write_checkpoint(path, stored=None):
    torch.save(checkpoint(stored), path)
    return path


def write_folder(path, stored=None):
    weights = {name: value.clone() for name, value in _module().network.state_dict().items()}
    about = WeightsInfo("pMF", "raw", {"file": "last.ckpt", "sha256": "0"}, config() if stored is None else stored)
    weights_folder.write(path, StoredWeights(weights, {}, about), force=True)
    return path
