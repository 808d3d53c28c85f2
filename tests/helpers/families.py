"""A small model of each family with random weights, none of them zero, as a weights folder."""

import math
from functools import cache

import torch
from common import normal
from shrunk import BACKBONE

from pmf_lightning import build, compose
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.conversion import stored_of

NO_BOTTLENECK = [change for change in BACKBONE if "bottleneck" not in change]
OVERRIDES = {
    "pmf": ["model=pmf_digits", "data=digits", *BACKBONE],
    "imf": ["model=imf_b2", "data=imagenet256_latents", "data.resolution=8", "data.classes=10", *NO_BOTTLENECK],
    "jit": ["model=jit_b16", "data=digits", "backbone.patch=8", "backbone.context=4", "backbone.context_start=0"],
    "drifting": ["model=drifting_b16", "drift_features=raw", "data=digits", "backbone.patch=8", "backbone.context=3"],
    "mae": ["model=mae_tiny", "backbone.base_channels=32", "backbone.blocks=[1, 1, 1, 1]"],
}
OVERRIDES["jit"] += [*BACKBONE[:4], BACKBONE[5], "sampling.steps=2"]
OVERRIDES["drifting"] += [*BACKBONE[:4], "objective.style_codes=3", "batch=128"]


@cache
def module(family):
    """The module in eval mode; its names of classes are words."""
    made = build(compose(OVERRIDES[family]))
    with torch.no_grad():
        for name, weight in made.network.named_parameters():
            spread = 1 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.3
            weight.copy_(spread * normal("families", name, shape=tuple(weight.shape)))
            if weight.ndim == 1 and not name.endswith("bias"):
                weight.add_(1)
    made.average = "raw"
    if getattr(made.network, "classes", 0) == 10:
        made.class_names = [*["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]
    return made.eval()


def write(path, family):
    weights_folder.write(path, stored_of(module(family)), force=True)
    return path
