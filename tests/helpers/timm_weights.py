"""Random weights of networks of timm."""

import timm
import torch

from pmf_lightning.utils import rng


def weights_of(name):
    """Random weights, none of them zero, of a network of timm with a classifier of 7 classes."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(name, num_classes=7).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=rng.generator("timm", key)) * 0.1
        state[key] = values.abs() + 0.5 if key.endswith(("norm.weight", "running_var")) else values
    return state
