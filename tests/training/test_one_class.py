"""Images of one class: what is set for them, what is measured, and a run from a flat folder to samples."""

from unittest.mock import Mock

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from shrunk import BACKBONE

from pmf_lightning import build, compose
from pmf_lightning.commands import benchmark
from pmf_lightning.commands.info import info
from pmf_lightning.config.one_class import for_its_classes
from pmf_lightning.evaluation.guidance_search.space import make_axes
from pmf_lightning.objectives.jit import JiT
from pmf_lightning.pipeline.images import sampling_options
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sample import sample
from pmf_lightning.sampling.generate import OPTIONS, network_evaluations
from pmf_lightning.train import train
from pmf_lightning.utils.errors import UserError


@pytest.fixture
def faces(tmp_path):
    """A flat folder of 24 pictures of three sizes."""
    (tmp_path / "faces").mkdir()
    levels = np.random.default_rng(0)
    for number in range(24):
        size = (20 + number % 3, 24, 3)
        Image.fromarray(levels.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / "faces" / f"{number:05d}.png")
    return [f"data.root={tmp_path / 'faces'}", f"data.cache_dir={tmp_path / 'cache'}", "data=folder"]


SWITCHED_OFF = {
    "pixel_meanflow.PixelMeanFlow": {"objective.label_dropout": 0, "objective.omega_max": 1},
    "jit.JiT": {"objective.label_dropout": 0},
    "drifting.Drifting": {"objective.alpha_max": 1, "queues.negatives": 0},
    "masked_autoencoder.MaskedAutoencoder": {"objective.class_steps": 0},
}


@pytest.mark.parametrize("kind", SWITCHED_OFF)
def test_what_serves_guidance_alone_is_switched_off_and_said(kind):
    objective = {"_target_": f"pmf_lightning.objectives.{kind}", "label_dropout": 0.1, "omega_max": 8, "alpha_max": 4}
    objective |= {"omega_min": 1, "class_steps": 9, "P_mean": 0.8}
    sections = {"objective": objective, "queues": {"negatives": 16}, "sampling": {"omega": 2.5}}
    cfg = OmegaConf.create({**sections, "search": {"omega": [1, 2]}, "data": {"classes": 1}})
    before, wanted = OmegaConf.to_container(cfg), SWITCHED_OFF[kind] | {"sampling.omega": 1, "search.omega": [1]}
    unguided, said = for_its_classes(cfg)
    for option, value in wanted.items():
        assert OmegaConf.select(unguided, option) == value
        OmegaConf.update(unguided, option, OmegaConf.select(cfg, option))
    assert unguided == cfg == before  # nothing else is changed
    listed = ", ".join(f"{option}={value}" for option, value in wanted.items())
    assert said == f"one class: no label is dropped and guidance has no meaning, so {listed}"
    cfg.data.classes = 2
    assert for_its_classes(cfg) == (cfg, None)


@pytest.mark.slow
def test_info_benchmark_and_search_switch_guidance_off_as_training_does(faces, capsys, monkeypatch):
    small = ["model=pmf_tiny", *BACKBONE, "data.resolution=16", "batch=4"]
    options = [*small, *faces]
    (facts,) = info(options)
    assert "one class: no label is dropped" in capsys.readouterr().err
    assert facts.block_forwards.guidance < info(small)[0].block_forwards.guidance
    seen = {}
    monkeypatch.setitem(benchmark.BENCHMARKS, "step", (lambda cfg: seen.setdefault("cfg", cfg) and {}, str))
    benchmark.run(compose(["what=step", *options], "benchmark"))
    assert (seen["cfg"].objective.omega_max, seen["cfg"].sampling.omega) == (1, 1)
    module = Mock(spec=GenerativeModule, network=Mock(classes=1), objective=build(compose(options)).objective)
    module.config = OmegaConf.to_container(compose([*options, "data.classes=1"]), resolve=True)
    asked = compose(["ckpt=x"], "search_guidance")
    axes = make_axes(asked, module, ["2k"])
    assert (axes.omega, axes.interval) == ((1.0,), ((0.0, 1.0),))
    asked.omega = [1, 2]
    with pytest.raises(UserError, match="the model has one class, so guidance has no meaning"):
        make_axes(asked, module, ["2k"])


def test_one_image_is_refused_or_trained_on(tmp_path):
    Image.new("RGB", (16, 16), (9, 8, 7)).save(tmp_path / "a.png")
    options = ["model=pmf_tiny", *BACKBONE, "data=folder", f"data.root={tmp_path}", "data.resolution=16", "batch=4"]
    options += [f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}", "steps=1"]
    with pytest.raises(UserError, match=r"data.held_out_fraction=0.1 holds out none of the 1 image.* metrics=none$"):
        train(compose([*options, "sample_grid.enabled=false"]))


def test_samples_take_no_guidance():
    module, asked = Mock(spec=GenerativeModule), OmegaConf.create(dict.fromkeys(OPTIONS))
    module.network, module.objective = Mock(classes=1), JiT("x", "v", 1.0, 0.8, 0.8, 0.0, 0.05)
    module.config = {"sampling": {"steps": 5, "sampler": "euler", "omega": 1.0, "t_min": 0.0, "t_max": 1.0}}
    assert network_evaluations(module.objective, **sampling_options(asked, module)) == 5
    asked.omega = 3
    with pytest.raises(UserError, match=r"^omega=3: this model was trained on one class, .*; leave omega out$"):
        sampling_options(asked, module)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_tiny", "jit_tiny", "drifting_tiny", "mae_tiny"])
def test_a_flat_folder_trains_and_samples(model, faces, tmp_path):
    small = ["steps=20", "data.resolution=16", "backbone.patch=8", "data.held_out_fraction=0.2", "batch=16"]
    small += (
        ["metrics.classifier.steps=5", "checkpoint.every_images=1000000"]
        if model != "mae_tiny"
        else ["objective.cell=1"]
    )
    summary = train(compose([f"model={model}", *faces, *small, f"run_dir={tmp_path / 'run'}"]))
    assert summary["steps"] == 20
    if model == "mae_tiny":
        return
    assert summary["fd"] > 0
    assert summary["class_accuracy"] is summary["real_accuracy"] is None
    assert "class_accuracy" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    made = sample(compose([f"ckpt={tmp_path / 'run'}", "n=3", "steps=1", f"out={tmp_path / 'out'}"], "sample"))
    with np.load(made["images"]) as found:
        assert found["arr_0"].shape == (3, 16, 16, 3)
        assert not found["arr_1"].any()
