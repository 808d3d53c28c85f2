"""Every kind of model trains by the same command, goes on as if never stopped, and says how it is judged."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from kept import assert_same, weights
from shrunk import backbone

from pmf_lightning import UserError, compose, load_checkpoint
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.encoders.drifting.build import run_encoder
from pmf_lightning.objectives.base import Batch
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.module import GenerativeModule
from pmf_lightning.sample import sample
from pmf_lightning.train import train
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.reconstructions import Reconstructions
from pmf_lightning.training.callbacks.throughput import ThroughputBar

DIGITS = ("name", "resolution", "channels", "classes", "held_out_images")
SHORT = ["batch=16", "log_every_steps=1", "sample_grid.every_images=48", "checkpoint.every_images=16", "metrics=none"]


def run(model, folder, *overrides):
    return train(compose([f"model={model}", *backbone(model), *SHORT, f"run_dir={folder}", *overrides]))


@pytest.fixture(scope="module", params=["jit_tiny", "drifting_tiny", "mae_tiny"])
def straight(request, tmp_path_factory):
    """The model, the folder of its run of five steps, and the summary."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, folder, run(request.param, folder, "steps=5")


@pytest.mark.slow
def test_a_resumed_run_is_the_straight_one(straight, tmp_path):
    model, folder, _ = straight
    stopped = _stop_after(3, model, tmp_path / "stopped")  # not by steps=3, which would change the schedules
    run(model, stopped, "steps=5", "ckpt=last")
    assert_same(weights(stopped), weights(folder))


def _stop_after(step, model, folder):
    """Train, and die right after the checkpoint of ``step``."""

    class Killed(Exception):
        pass

    save = CheckpointWriter.save

    def and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", and_die)
        with pytest.raises(Killed):
            run(model, folder, "steps=5")
    assert read_checkpoint(folder)["global_step"] == step
    return folder


@pytest.mark.slow
def test_the_summary_says_how_it_is_judged(straight):
    model, folder, summary = straight
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "grids" / "final.png").is_file()
    assert (folder / "curves.png").is_file()
    if model == "jit_tiny":
        assert (summary["nfe"], summary["sampling_steps"], summary["sampling_method"]) == (187, 50, "heun")
    if model == "drifting_tiny":
        assert (summary["nfe"], summary["sampling_method"]) == (1, "one_step")
    if model == "mae_tiny":
        assert "nfe" not in summary
        assert {name: summary[name] for name in ("held_out_error", "held_out_accuracy")} == pytest.approx(
            held_out_metrics(load_checkpoint(folder)), rel=1e-5
        )


def held_out_metrics(module):
    """What an autoencoder makes of the held-out digits, 50 at once."""
    found, images = [], Digits(**{name: module.config["data"][name] for name in DIGITS}).held_out()
    for start in range(0, len(images), 50):
        pixels, labels = images.batch(range(start, min(start + 50, len(images))))
        batch = Batch(pixels.float() / 127.5 - 1, labels)
        found.append(module.objective.held_out_metrics(module.network, batch, module.objective.draw(batch, 0, start)))
    return {name: torch.cat([part[name] for part in found]).mean().item() for name in found[0]}


def test_held_out_numbers_are_means_over_all_images_by_the_averaged_weights(tmp_path):
    """Here the error of an image is its label times the only weight, 1 raw and 3 averaged."""
    network, averages = torch.nn.Linear(1, 1, bias=False), EMA([1], None, 16)
    torch.nn.init.ones_(network.weight)
    averages.averages["1k"] = {"weight": torch.full((1, 1), 3.0)}
    objective = SimpleNamespace(
        draw=lambda batch, seed, step: None,
        held_out_metrics=lambda network, batch, drawn: {"held_out_error": batch.y * network.weight.item()},
    )
    module = Mock(spec=GenerativeModule, network=network, objective=objective, seed=0, device=torch.device("cpu"))
    module.inputs = lambda images, rows, step: images.float()
    held_out = Digits("digits", 8, 1, 10, 360).held_out()
    shared = {"averages": averages, "progress": Mock(spec=ThroughputBar), "ema": "1k"}
    measured = Reconstructions(held_out, folder=tmp_path, every_steps=1, rows=1, columns=1, **shared).measure(module)
    assert measured == {"held_out_error": pytest.approx(3 * held_out.labels.float().mean().item())}


def test_what_the_loss_looks_through_is_no_part_of_the_model(tmp_path):
    """The encoder of drifting's features is neither trained nor saved."""
    encoder = ["drift_features=mae_tiny", "drift_features.settings.steps=2", f"cache_dir={tmp_path}"]
    run("drifting_tiny", tmp_path / "run", *encoder, "steps=1")
    names = read_checkpoint(tmp_path / "run")["state_dict"]
    assert all(name.startswith("network.") for name in names)
    assert load_checkpoint(tmp_path / "run").network.classes == 10


def test_what_is_logged(straight):
    model, folder, _ = straight
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        "jit_tiny": {"loss_v"},
        "drifting_tiny": {"force_norm_0.2", "force_norm_0.05", "force_norm_0.02", "scale"},
        "mae_tiny": {"loss_reconstruction", "cross_entropy", "accuracy"},
    }[model]
    assert all(wanted <= row.keys() and all(row[name] >= 0 for name in wanted) for row in rows)
    timed = any("/t" in name for row in rows for name in row)
    assert timed == (model == "jit_tiny")


def test_what_comes_of_a_checkpoint(straight, tmp_path):
    """A generator's draws images, in other steps too; an autoencoder's gives drifting its encoder."""
    model, folder, _ = straight
    if model == "mae_tiny":
        pairs = zip(run_encoder(folder).parameters(), load_checkpoint(folder).network.encoder.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        return
    cfg = compose([f"ckpt={folder}", f"out={tmp_path}", "n=3", "classes=[1]"], "sample")
    assert sample(cfg)["nfe"] == {"jit_tiny": 187, "drifting_tiny": 1}[model]
    other = compose([f"ckpt={folder}", f"out={tmp_path}/other", "n=1", "steps=2", "sampler=euler", "omega=1"], "sample")
    if model == "jit_tiny":
        assert sample(other)["nfe"] == 2
    else:
        with pytest.raises(UserError, match="sampler=euler: this model samples by one_step"):
            sample(other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=jit_tiny", "objective.prediction=u"], "objective: .*prediction=u is not one of x, eps, v"),
        (["model=jit_tiny", "objective.loss=e"], "objective: .*loss=e is not one of x, eps, v"),
        (["model=jit_tiny", "sampling.steps=0"], "sampling.steps=0: at least one"),
        (["model=jit_tiny", "sampling.sampler=average"], "sampling.sampler=average: this model samples by heun, euler"),
        (["model=jit_tiny", "metrics.extra_steps=[0]"], "metrics.extra_steps=.*each an integer, 1 or more"),
        (["model=jit_tiny", "objective.t_clip=2"], "objective.t_clip=2: give one number from 0 to 1"),
        (["model=jit_tiny", "ema.halflife_kimg=[4,8,4]"], "ema.halflife_kimg=.*two averages have the name 4k"),
        (
            ["model=drifting_tiny", "objective.normalisation=x"],
            "objective: .*normalisation=x: give one of both, y, none",
        ),
        (["model=drifting_tiny", "sampling.omega=0.9"], "sampling.omega=0.9"),
        (["model=drifting_tiny", "sampling.steps=2"], "sampling.steps=2: this model makes an image in one step"),
        (["model=drifting_tiny", "objective.alpha_max=0.5"], "objective: .*alpha_max=0.5"),
        (
            ["model=drifting_tiny", "data.resolution=64", "drift_features=mae_released"],
            "drift_features.path is not set",
        ),
        (["model=mae_tiny", "metrics.enabled=true"], "metrics.enabled=true: mae_tiny generates no images to evaluate"),
        (["model=pmf_digits", "objective=drifting"], "objective: Drifting has no option .*lacks .*queues"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        train(compose([*overrides, f"run_dir={tmp_path}"]))
    assert "\n" not in str(refused.value)
