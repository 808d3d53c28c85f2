"""The Python of README.md and docs/python.md runs, and README's numbers are those of committed files."""

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
from pmf_lightning.config.presets import published
from pmf_lightning.info import info
from pmf_lightning.reports.runs import read_runs
from pmf_lightning.sample import sample
from pmf_lightning.train import train
from pmf_lightning.weights.drifting import generator_arrays

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
(EVALUATION,) = [block for block in BLOCKS if "SmallDataEvaluator" in block]
(OFFICIAL,) = [block for block in BLOCKS if "load_official" in block]
PURE = [block for block in BLOCKS if block not in (EVALUATION, OFFICIAL)]
FIRST = "".join(re.findall(r"```python\n(.*?)```", README, re.S))
IMF = ["backbone.bottleneck=null"]  # as in its official files
EXPERIMENTS = ROOT / "experiments"
SPEED = {path.stem: json.loads(path.read_text()) for path in (EXPERIMENTS / "speed_cpu").glob("*.json")}


def test_the_numbers_are_those_of_the_committed_run():
    run = next(run for run in read_runs(EXPERIMENTS / "digits") if run.config["name"] == "pmf_digits").summary
    fd, floor, accuracy = f"{run['fd']:.1f}", f"{run['fd_floor']:.1f}", f"{run['class_accuracy']:.3f}"
    assert f"class accuracy {accuracy}, Frechet distance {fd}" in " ".join(README.split())
    assert f"held-out images have {floor}" in README
    assert f'print(f"{{quality.fd:.1f}}")  # {fd}, ' in EVALUATION


def numbers_of(row: str) -> list[float]:
    """The numbers of README's table row that begins with ``row``."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row}")]
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", line.split("|", 2)[2])]


def test_the_ratios_are_those_of_the_benchmarks():
    step, data = SPEED["step_small"], SPEED["data_npy"]
    there = step["textbook"]
    ours = [step["loss_and_gradients_ms"], there["ms"], there["ratio"], there["ratio_min"], there["ratio_max"]]
    assert numbers_of("loss and gradients") == pytest.approx(ours, rel=5e-3)
    two = data["by_workers"]["2"]
    ours = [two["shards"], two["files"], two["ratio"], two["ratio_min"], two["ratio_max"]]
    assert numbers_of("reading shards") == pytest.approx(ours, rel=1e-2)


def test_memory_and_speed_of_small_models_are_those_of_their_files():
    memory = SPEED["memory"]["models"].values()
    assert numbers_of("peak memory of the process") == [
        n for model in memory for n in (model["peak_mb"], model["batch"])
    ]
    study = (EXPERIMENTS / "four_objectives" / "README.md").read_text()
    speeds = [
        int(row.split("|")[5]) for row in study.splitlines() if re.match(r"\| (pMF|iMF|Drifting|JiT), 1 step", row)
    ]
    assert sorted(numbers_of("training images/s")) == sorted(speeds)


def test_published_numbers_are_those_of_the_presets():
    rows = re.findall(r"^\| \[\w+\]\(docs/methods/.*\| ([\d.]+) \(`(\w+)`\) \|$", README, re.M)
    assert len(rows) == 4
    for fid, best in rows:
        family = best.split("_")[0]
        there = {
            name: facts.fid for name, facts in published().items() if name.startswith(family) and "256" in facts.data
        }
        assert float(fid) == there[best] == min(value for value in there.values() if value)


def test_readme_is_short():
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("block", PURE, ids=range(len(PURE)))
def test_the_mathematics_runs(block):
    exec(compile(block, "python.md", "exec"), {})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a small run where README has its own, and its summary."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PMF_CACHE", str(folder / "cache"))
        short = [*BACKBONE, "images=3840", "metrics.every_images=3840", "sample_grid.enabled=false"]
        summary = train(compose(["model=pmf_digits", *short, "run_dir=runs/pmf_digits-digits/now"]))
    return folder, summary


@pytest.mark.slow
def test_the_example_draws_and_judges_as_the_run_does(home, monkeypatch, capsys):
    folder, summary = home
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PMF_CACHE", str(folder / "cache"))
    names = {}
    exec(compile(FIRST.replace("<time>", "now"), "README.md", "exec"), names)
    first = names["images"]
    exec(compile(EVALUATION.replace("<time>", "now"), "python.md", "exec"), names)
    assert torch.equal(names["images"], first)
    assert names["quality"].fd == pytest.approx(summary["fd"], rel=1e-6)
    assert capsys.readouterr().out.endswith(f"{summary['fd']:.1f}\n")
    assert names["images"].shape == (4, 1, 32, 32)
    assert names["images"].abs().max() <= 1


@pytest.mark.slow
def test_images_are_those_of_the_command(home, tmp_path):
    run = home[0] / "runs" / "pmf_digits-digits" / "now"
    asked = [f"ckpt={run}", "n=5", "classes=[3,1]", "seed=2", f"out={tmp_path}", "batch_size=5"]
    drawn = np.load(sample(compose(asked, "sample"))["images"])
    images = sample_images(load_checkpoint(run), drawn["arr_1"].tolist(), seed=2, batch_size=5)
    levels = ((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(levels - drawn["arr_0"]).max() <= 1
    assert torch.equal(sample_images(load_checkpoint(run), [1], seed=2, first=1), images[1:2]) or torch.allclose(
        sample_images(load_checkpoint(run), [1], seed=2, first=1), images[1:2], atol=1e-4
    )


def test_what_sample_images_refuses():
    module = build(compose(["model=pmf_tiny", *BACKBONE]))
    assert sample_images(module, torch.tensor([1, 2]), steps=1, omega=None).shape == (2, 1, 32, 32)
    for labels in ([], [10], [-1], [[1]]):
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
        OFFICIAL,
    )
    files = re.findall(r'load_official\("([^"]+)", build\(compose\((\[.*?\])\)\)', text)
    assert len(files) == 5
    for name, overrides in files:
        network = build(compose(eval(overrides))).network
        if "drifting" in overrides:
            arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in generator_arrays(network).items()}
            Path(name).mkdir(parents=True)
            write(Path(name) / "ema_params.msgpack", nested(arrays))
            continue
        weights = official_weights(network)
        torch.save({"model_ema1": weights} if "jit" in overrides else weights, name)
    exec(compile(text, "python.md", "exec"), {})


@pytest.mark.slow
def test_the_memory_of_the_large_run_is_what_info_counts():
    recipes = (ROOT / "docs" / "recipes.md").read_text().replace("\\\n", "")
    line = re.search(r"pmf train (model=pmf_h32 .*?activation_checkpointing=true)", recipes, re.S)[1]
    said = re.search(r"counts (\d+) GB for each of the 8 GPUs.*?(\d+) GB without", recipes, re.S)
    overrides = [one for one in line.split() if not one.startswith("trainer=")]
    counted = info(overrides)[0].memory.peak / 1e9
    assert f"{counted:.0f}" == said[1]
    plain = [one for one in overrides if not one.startswith(("micro_batch=", "activation_checkpointing="))]
    assert f"{info([*plain, 'micro_batch=128'])[0].memory.peak / 1e9:.0f}" == said[2]
