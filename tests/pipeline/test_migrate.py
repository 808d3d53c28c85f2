"""A checkpoint that was written before classes moved and were renamed samples, evaluates and resumes."""

import shutil
from pathlib import Path

import pytest
import torch
from kept import weights

from pmf_lightning import compose, load_checkpoint
from pmf_lightning.pipeline.migrate import MOVED_TARGETS, migrate_callbacks, migrate_config
from pmf_lightning.pipeline.trusted import resolve
from pmf_lightning.train import train

OLD = Path(__file__).parents[1] / "reference" / "before_the_moves.ckpt"  # pmf_tiny, three steps of four images
SAME = [
    *("model=pmf_tiny", "backbone.width=8", "backbone.num_heads=1", "backbone.depth=1", "backbone.mlp_dim=16"),
    *("backbone.bottleneck=8", "batch=4", "metrics=none", "sample_grid.enabled=false"),
]


def test_every_moved_target_is_where_the_table_says():
    for target in MOVED_TARGETS.values():
        resolve(target)
    assert not MOVED_TARGETS.keys() & MOVED_TARGETS.values()


def test_options_that_are_newer_get_the_values_that_the_run_had():
    objective = {"_target_": "pmf_lightning.objectives.pixel_meanflow.PixelMeanFlow", "omega_min": 2.0}
    edm = {"_target_": "pmf_lightning.objectives.preconditioners.EDM", "sigma_data": 0.5}
    objective["preconditioner"] = edm
    config = migrate_config({"objective": objective, "data": {"_target_": "pmf_lightning.data.digits.Digits"}})
    assert config["objective"] == {
        **{**objective, "preconditioner": {**edm, "noise_scale": 1.0}},
        **{"jvp_tangent": "network", "sample_interval": True},
    }
    assert config["data"]["_target_"] == "pmf_lightning.data.sources.digits.Digits"
    assert (config["flip"], config["compile"], config["decoder"]) == (False, False, None)
    assert migrate_config(config) == config


def test_objectives_and_backbones_get_the_values_from_before_their_options():
    drifting = {"_target_": "pmf_lightning.objectives.drifting.Drifting"}
    jit = {"_target_": "pmf_lightning.models.jit_vit.JiTViT"}
    config = migrate_config({"objective": drifting, "backbone": jit})
    assert config["objective"] == {**drifting, "affinity_floor": 1e-6}
    assert config["backbone"] == {**jit, "positions": "sincos"}
    stated = {"objective": {**drifting, "affinity_floor": 0.0}, "backbone": {**jit, "positions": "learnt"}}
    assert {name: migrate_config(stated)[name] for name in stated} == stated


def test_callbacks_find_their_state():
    assert migrate_callbacks({"callbacks": {"LastCheckpoint": 1, "SkipNonFinite": 2}, "epoch": 0}) == {
        "callbacks": {"CheckpointWriter": 1, "SkipNonFinite": 2},
        "epoch": 0,
    }


def test_an_old_checkpoint_loads():
    module = load_checkpoint(OLD)
    stored = torch.load(OLD, weights_only=True)
    assert stored["config"]["data"]["_target_"] in MOVED_TARGETS
    assert all(torch.equal(module.network.state_dict()[name], value) for name, value in stored["ema"]["2k"].items())


@pytest.mark.slow
def test_an_old_checkpoint_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD, tmp_path / "run" / "checkpoints" / "last.ckpt")
    summary = train(compose([*SAME, "steps=5", "run_dir=run", "ckpt=last"]))
    assert summary["steps"] == 5
    new = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert new["images"] == 20
    assert "CheckpointWriter" in new["callbacks"]
    assert new["config"]["data"]["_target_"] == "pmf_lightning.data.sources.digits.Digits"
    assert weights("run").keys() == weights(OLD).keys()
