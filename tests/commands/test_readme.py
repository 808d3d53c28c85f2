"""The Python of README.md runs, and the numbers printed there are those that were measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flax_files import nested, write
from shrunk import BACKBONE, backbone

import pmf_lightning
from pmf_lightning import build, compose, load_checkpoint, official_weights, sample_images
from pmf_lightning.info import info
from pmf_lightning.sample import sample
from pmf_lightning.train import train
from pmf_lightning.weights.drifting import generator_arrays

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
IMF = ["backbone.bottleneck=null"]  # as in its official files
STUDY = ROOT / "experiments" / "2026-11-22_digits"


def test_the_numbers_are_those_of_the_run_that_is_kept():
    kept = json.loads((STUDY / "summary.json").read_text())
    fd, floor, accuracy = f"{kept['fd']:.1f}", f"{kept['fd_floor']:.1f}", f"{kept['class_accuracy']:.3f}"
    assert f"class accuracy {accuracy}, Frechet distance {fd}" in " ".join(README.split())
    assert floor in README
    assert f'print(f"{{quality.fd:.1f}}")  # {fd}, ' in BLOCKS[1]


def test_the_mathematics_runs():
    exec(compile(BLOCKS[0], "README.md", "exec"), {})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a small run where README has its own, and its summary."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PMF_CACHE", str(folder / "cache"))
        short = [*BACKBONE, "images=3840", "metrics.every_images=3840", "grid.enabled=false"]
        summary = train(compose(["model=pmf_digits", *short, "run_dir=runs/pmf_digits-digits/now"]))
    return folder, summary


@pytest.mark.slow
def test_the_example_draws_and_judges_as_the_run_does(home, monkeypatch, capsys):
    folder, summary = home
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PMF_CACHE", str(folder / "cache"))
    names = {}
    exec(compile(BLOCKS[1].replace("<time>", "now"), "README.md", "exec"), names)
    assert names["quality"].fd == pytest.approx(summary["fd"], rel=1e-6)
    assert capsys.readouterr().out.endswith(f"{summary['fd']:.1f}\n")
    assert names["images"].shape == (4, 1, 32, 32)
    assert names["images"].abs().max() <= 1


@pytest.mark.slow
def test_images_are_those_of_the_command(home, tmp_path):
    run = home[0] / "runs" / "pmf_digits-digits" / "now"
    asked = [f"ckpt={run}", "n=5", "classes=[3,1]", "seed=2", f"out={tmp_path}", "chunk=5"]
    drawn = np.load(sample(compose(asked, "sample"))["images"])
    images = sample_images(load_checkpoint(run), drawn["arr_1"].tolist(), seed=2, chunk=5)
    levels = ((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(levels - drawn["arr_0"]).max() <= 1
    assert torch.equal(sample_images(load_checkpoint(run), [1], seed=2, first=1), images[1:2]) or torch.allclose(
        sample_images(load_checkpoint(run), [1], seed=2, first=1), images[1:2], atol=1e-4
    )


def test_what_sample_images_refuses():
    module = build(compose(["model=pmf_tiny", *BACKBONE]))
    assert sample_images(module, torch.tensor([1, 2]), steps=1, omega=None).shape == (2, 1, 32, 32)
    for labels in ([], [11], [-1], [[1]]):
        with pytest.raises((ValueError, TypeError)):
            sample_images(module, torch.tensor(labels))
    with pytest.raises(TypeError, match="no option guidance; it has steps"):
        sample_images(module, [1], guidance=2)
    with pytest.raises(ValueError, match="omega"):
        sample_images(module, [1], omega=0.5)
    assert pmf_lightning.sample_images is sample_images


@pytest.mark.slow
def test_released_weights_load_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.sub(
        r'"model=(\w+)"',
        lambda found: ", ".join(
            map(repr, [found[0][1:-1], *backbone(found[1]), "metrics=none", *IMF * ("imf" in found[1])])
        ),
        BLOCKS[2],
    )
    files = re.findall(r'load_official\("([^"]+)", build\(compose\((\[.*?\])\)\)', text)
    assert len(files) == 4
    for name, overrides in files:
        network = build(compose(eval(overrides))).network
        if "drifting" in overrides:
            arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in generator_arrays(network).items()}
            Path(name).mkdir(parents=True)
            write(Path(name) / "ema_params.msgpack", nested(arrays))
            continue
        weights = official_weights(network)
        torch.save({"model_ema1": weights} if "jit" in overrides else weights, name)
    exec(compile(text, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_memory_of_the_large_run_is_what_info_counts():
    line = re.search(r"pmf_lightning\.train (model=pmf_h32 .*?recompute=true)", README.replace("\\\n", ""), re.S)[1]
    said = re.search(r"on 8 GPUs (\d+) GB each.*?(\d+) GB without", README, re.S)
    overrides = [one for one in line.split() if not one.startswith("trainer=")]
    counted = info(overrides)[0].memory.peak / 1e9
    assert f"{counted:.0f}" == said[1]
    plain = [one for one in overrides if not one.startswith(("micro_batch=", "recompute="))]
    assert f"{info([*plain, 'micro_batch=128'])[0].memory.peak / 1e9:.0f}" == said[2]
