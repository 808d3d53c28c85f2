"""One thread, and the frozen numbers of the official code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pmf_lightning import build, compose, load_official

torch.set_num_threads(1)
REFERENCE = Path(__file__).parent / "reference"


def _load(name: str) -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / name) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Weights, batch and draws of pMF's official code (float32); see tests/reference/README.md."""
    return _load("pmf_tiny.npz")


@pytest.fixture(scope="session")
def golden_values() -> dict[str, torch.Tensor]:
    """What the official code computes from ``golden``, in float64."""
    return _load("pmf_tiny_f64.npz")


@pytest.fixture(scope="session")
def official_weights(golden) -> dict[str, torch.Tensor]:
    return {key.removeprefix("w/"): value for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="session")
def tiny_config():
    """The configuration of the golden network."""
    return compose(["model=pmf_tiny", "data.resolution=32", "data.channels=3"])


@pytest.fixture(scope="session")
def golden_module(tiny_config, official_weights) -> Callable[[torch.dtype], torch.nn.Module]:
    """A maker of the golden module: composed, built, with the official weights, of a given dtype."""

    def make(dtype: torch.dtype) -> torch.nn.Module:
        module = build(tiny_config)
        load_official(official_weights, module.network)
        return module.to(dtype)

    return make
