"""One thread, commands as a user calls them, and the frozen numbers of the official code."""

import sys
from collections.abc import Callable
from pathlib import Path

import composed_once
import numpy as np
import pytest
import torch

from pmf_lightning import build, compose, load_official

torch.set_num_threads(1)
composed_once.install()
REFERENCE = Path(__file__).parent / "reference"


def _load(name: str) -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / name) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


# The overrides that make the networks of the golden numbers.
GOLDEN = {
    "pmf": ["model=pmf_tiny", "data.resolution=32", "data.channels=3"],
    "imf": [
        "model=imf_b2",
        "data.resolution=16",
        "data.channels=4",
        "backbone.width=64",
        "backbone.num_heads=4",
        "backbone.mlp_dim=170",
        "backbone.depth=2",
        "backbone.heads={u: 2, v: 2}",
    ],
}


@pytest.fixture
def call_command(monkeypatch, tmp_path, capfd):
    """Call the ``main`` of a command in an empty folder; return (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["pmf_lightning", *arguments])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def family() -> str:
    """Whose golden numbers: a test file overrides this to see iMF's too (so no fixture lives longer than a file)."""
    return "pmf"


@pytest.fixture(scope="module")
def golden(family) -> dict[str, torch.Tensor]:
    """Weights, batch and draws of the official code (float32); see tests/reference/README.md."""
    return _load(f"{family}_tiny.npz")


@pytest.fixture(scope="module")
def golden_values(family) -> dict[str, torch.Tensor]:
    """What the official code computes from ``golden``, in float64."""
    return _load(f"{family}_tiny_f64.npz")


@pytest.fixture(scope="module")
def official_weights(golden) -> dict[str, torch.Tensor]:
    return {key.removeprefix("w/"): value for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="module")
def tiny_config(family):
    """The configuration of the golden network."""
    return compose(GOLDEN[family])


@pytest.fixture(scope="module")
def golden_module(tiny_config, official_weights) -> Callable[[torch.dtype], torch.nn.Module]:
    """A maker of the golden module: composed, built, with the official weights, of a given dtype."""

    def make(dtype: torch.dtype) -> torch.nn.Module:
        module = build(tiny_config)
        load_official(official_weights, module.network)
        return module.to(dtype)

    return make
