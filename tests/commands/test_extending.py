"""Code from outside: the example of docs/extending.md, as a user runs it and through the Python API."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from extending import commands, write_example
from processes import python

from pmf_lightning import UserError, build, compose
from pmf_lightning.pipeline.parts import make_part

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The files of the page in an empty folder, which is on the import path and on the config search path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PMF_CONF", str(write_example(tmp_path)))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_flow"]:
        del sys.modules[name]


def test_the_objective_learns_the_velocity(example):
    module = build(compose(["model=my_digits", "data=spots"]))
    objective, batch = module.objective, _batch(module)
    draws = objective.draw(batch, seed=0, step=3)
    halves = [objective.draw(_rows(batch, rows), 0, 3, shard) for rows, shard in _shards()]
    assert torch.equal(torch.cat([half.noise for half in halves])[[0, 2, 1, 3]], draws.noise)  # as on two devices
    velocity = draws.noise - batch.x
    losses = objective(lambda *_, **__: {"u": velocity}, batch, draws)
    assert losses.total == 0
    assert torch.equal(objective.ode_velocity(lambda *_, **__: {"u": velocity}, batch.x, 0.5, batch.y), velocity)
    assert objective(module.network, batch, draws).total.requires_grad


def _batch(module):
    from pmf_lightning import Batch

    images, labels = make_part(compose(["model=my_digits", "data=spots"]), "data").train().batch(range(4))
    return Batch(images.float() / 127.5 - 1, labels)


def _rows(batch, rows):
    return type(batch)(batch.x[rows], batch.y[rows])


def _shards():
    from pmf_lightning.utils.rng import BatchRows

    return (slice(0, None, 2), BatchRows(0, 2)), (slice(1, None, 2), BatchRows(1, 2))


def test_the_data_the_encoder_and_their_options(example):
    cfg = compose(["model=my_digits", "data=spots", "extractor=cell_means", "data.radius=0.1", "extractor.cells=3"])
    source, encoder = make_part(cfg, "data"), make_part(cfg, "extractor")
    images, labels = source.held_out().batch([0, 1, 2, 3])
    means = encoder.open(torch.device("cpu"))(images).features
    assert means.shape == (4, encoder.features)
    assert labels.tolist() == [0, 1, 2, 3]
    assert means.argmax(1).tolist() != [0] * 4
    with pytest.raises(UserError, match=r"data.radius=big: give one number"):
        compose(["model=my_digits", "data=spots", "data.radius=big"])
    with pytest.raises(UserError, match=r"data.radus: there is no such option; did you mean data.radius"):
        compose(["model=my_digits", "data=spots", "data.radus=0.2"])
    with pytest.raises(UserError, match="there are four quadrants"):
        make_part(compose(["model=my_digits", "data=spots", "data.classes=3"]), "data").train()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed in a folder of its own, without its dependencies: those of the tests are used."""
    folder = tmp_path_factory.mktemp("installed")
    for arguments in (
        ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "wheel", ROOT],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            folder / "wheel",
            "--target",
            folder / "site",
            "pmf_lightning",
        ],
    ):
        done = python("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def shell(installed, tmp_path_factory):
    """Run a line with the installed program, in a folder that held nothing but the example; return the process."""
    folder = tmp_path_factory.mktemp("empty")
    write_example(folder)
    path = os.pathsep.join([str(installed / "bin"), os.environ["PATH"]])
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("PMF_")}
    environment = {**cleared, "PYTHONPATH": str(installed), "PATH": path, "PMF_CACHE": str(folder / "cache")}

    def run(line):
        return subprocess.run(
            shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True, timeout=1500
        )

    run.folder = folder
    return run


@pytest.mark.slow
def test_each_command_of_the_page(shell):
    """Train, resume, a multirun, info, sample, evaluate, convert; then the data, the encoder and the callback."""
    for line in commands():
        done = shell(line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    runs = shell.folder / "runs"
    assert json.loads((runs / "my_digits" / "summary.json").read_text())["steps"] == 10
    record = json.loads((runs / "my_digits" / "run.json").read_text())
    assert record["command"].startswith("python -m pmf_lightning.train --config-dir myconf model=my_digits")
    assert len(list(runs.glob("my_digits-digits/*/summary.json"))) == 2  # of the multirun
    assert "weight_norm" in (runs / "spots" / "metrics.jsonl").read_text()
    assert (shell.folder / "weights" / "my_digits" / "config.json").is_file()
    report = json.loads((shell.folder / "evaluation" / "evaluation.json").read_text())
    assert report["extractor"] == {"name": "cell_means", "fingerprint": "cell means 4"}
    refused = shell("pmf sample ckpt=runs/my_digits n=4")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: ckpt=runs/my_digits: it would run code outside pmf_lightning (my_flow.objective.FlowMatching); "
        "refused; if you trust that code, add trust=[my_flow], or set PMF_TRUST=my_flow\n"
    )
