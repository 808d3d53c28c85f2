"""``posttrain=``: it composes around every kind of model, is refused in one line, and trains, resumes and samples."""

import json

import pytest
import torch
from composed_once import settings_of
from kept import assert_same, state
from matching import GATED
from omegaconf import OmegaConf
from shrunk import BACKBONE

from pmf_lightning import UserError, compose, load_checkpoint, sample_images
from pmf_lightning.config.renamed import rename_options
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.objectives.discrepancies.choices import MMDNystrom
from pmf_lightning.pipeline.build import build
from pmf_lightning.train import train
from pmf_lightning.training.prepare import make_encoders, open_source, prepare, run_request

PIXELS = ["posttrain.encoders=[pixels8]", "metrics=none", "sample_grid.enabled=false"]
SHORT = (*BACKBONE, "model=pmf_digits", "posttrain=fd_loss", *PIXELS, "batch=8", "images=32", "log_every_steps=1")


def settings(*overrides, of=SHORT):
    return settings_of(of, *overrides)


@pytest.mark.parametrize("model", ["jit_tiny", "drifting_tiny"])
def test_it_wraps_other_models(model):
    shrunk = [one for one in BACKBONE if model != "drifting_tiny" or "heads" not in one]
    cfg = settings_of((*shrunk, f"model={model}", "posttrain=mmd", *PIXELS))
    objective = build(cfg).objective
    assert isinstance(objective.discrepancy, MMDNystrom)
    assert objective.samplers == objective.generator.samplers
    assert cfg.optimizer.lr == (2e-4 if model == "jit_tiny" else 6e-5)
    assert (cfg.sampling.steps, cfg.sampling.ema) == (1, "raw")


def test_a_run_is_named_after_its_recipe_and_warned_of_noise():
    cfg = settings()
    assert run_request(cfg).parent.name == "pmf_digits-fd_loss-digits"
    parts = prepare(cfg, open_source(cfg))
    assert list(parts.module.network.heads) == ["u"]
    assert parts.init_lines[0].startswith("warning: posttrain= without init_from=")
    assert parts.module.objective.encoder_note(parts.module.encoders).endswith("by Frechet in pixels8")
    reference = parts.module.encoders.targets["pixels8"].reference
    assert reference.width == 64


REFUSED = {
    "battery=null: posttrain=fd_loss needs it": ["battery=null"],
    r"battery\.members\.pixel8: there is no such encoder; .*pixels8": ["posttrain.encoders=[pixel8]"],
    r"posttrain.*encoders=\[\]: name at least one encoder": ["posttrain.encoders=[]"],
    r"posttrain.*discrepancy.rows=4: the population is smaller than batch=8": ["posttrain.discrepancy.rows=4"],
    "posttrain.batch=4: it follows batch=8; set batch= alone": ["posttrain.batch=4"],
    r"posttrain.*population=none is not one of ema, queue, batch": ["posttrain.discrepancy.population=none"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    cfg = settings(*REFUSED[message])
    with pytest.raises(UserError, match=message):
        make_encoders(cfg, open_source(cfg), build(cfg).objective)


def test_more_landmarks_than_real_images_are_refused():
    cfg = settings_of((*BACKBONE, "model=pmf_digits", "posttrain=mmd", *PIXELS), "posttrain.discrepancy.landmarks=5000")
    with pytest.raises(UserError, match=r"pixels8: landmarks=5000: .* 1,437; set posttrain.discrepancy.landmarks=1437"):
        make_encoders(cfg, open_source(cfg), build(cfg).objective)


def test_real_images_are_measured_on_the_device_of_the_run(monkeypatch):
    cfg, places = settings("trainer.accelerator=gpu", "trainer.devices=[1, 3]"), []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(Battery, "to", lambda battery, device: places.append(str(device)) or battery)
    make_encoders(cfg, open_source(cfg), build(settings()).objective)
    assert places == ["cuda:3", "cpu"]


def test_weights_of_encoders_are_an_option():
    cfg = compose(["model=pmf_digits", "posttrain=fd_loss", "posttrain.weights={classifier1: 2}"])
    assert build(cfg, empty=True).objective.weights == {"classifier1": 2}


def test_the_controller_is_set_option_by_option():
    cfg = compose(["model=pmf_digits", "posttrain=mmd", "posttrain.controller={temperature: 3}"])
    assert cfg.posttrain.controller == {**GATED, "temperature": 3}
    added = compose(["model=pmf_digits", "posttrain=fd_loss", "+controller=gated"])
    assert added.posttrain.controller == GATED
    for wrong, words in {"total=-3": "give one number above 0", "tempo=2": "temperature"}.items():
        with pytest.raises(UserError, match=rf"posttrain\.controller\.{wrong.split('=')[0]}.*{words}"):
            compose(["model=pmf_digits", "posttrain=mmd", f"+posttrain.controller.{wrong}"])


def test_adams_eps_and_the_clip_of_rdm_are_in_proportion_to_the_batch():
    """Its gradient is divided by the passes of 8 images in a step (Adam, eps 1e-8; clipped at 2)."""
    for batch in (512, 5120):
        cfg = compose(["model=pmf_h16", "data=imagenet256", "posttrain=rdm", f"batch={batch}"])
        assert cfg.optimizer.eps == pytest.approx(1e-8 * batch / 8)
        assert cfg.trainer.gradient_clip_val == pytest.approx(2 * batch / 8)


def test_a_batch_of_one_needs_a_population():
    cfg = settings("batch=1", "posttrain.discrepancy.population=batch")
    with pytest.raises(UserError, match=r"posttrain.*batch=1: so few images have no covariance"):
        build(cfg)


def test_a_model_that_makes_no_images_is_refused():
    cfg = settings_of(("model=mae_tiny", "posttrain=fd_loss", *PIXELS, "sampling.ema=raw"))
    with pytest.raises(UserError, match="MaskedAutoencoder makes no images"):
        build(cfg)


@pytest.mark.slow
def test_it_trains_resumes_and_samples(tmp_path):
    base = [*BACKBONE, "model=pmf_digits", "batch=8", "images=16", "metrics=none", "sample_grid.enabled=false"]
    train(compose([*base, f"run_dir={tmp_path / 'base'}"]))
    first = [*SHORT, f"init_from={tmp_path / 'base'}", "micro_batch=3"]
    judged = [*first, "metrics=small", "sample_grid.enabled=true", "metrics.classifier.steps=20"]
    judged += ["checkpoint.every_images=16", "checkpoint.keep_last=2"]
    summary = train(compose([*judged, f"run_dir={tmp_path / 'whole'}"]))
    assert summary["before"]["fd"] > 0
    assert (tmp_path / "whole" / "grids" / "before.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0].keys() >= {"step", "images", "fd_digits"}
    assert [(row["step"], row["images"]) for row in rows[:2]] == [(0, 0), (1, 8)]
    assert rows[1].keys() >= {"fd_pixels8", "grad_norm"}
    middle = min((tmp_path / "whole" / "checkpoints").glob("step-*.ckpt"))
    again = train(compose([*judged, f"run_dir={tmp_path / 'part'}", f"ckpt={middle}"]))
    assert again["before"] == summary["before"]
    assert_same(state(tmp_path / "part"), state(tmp_path / "whole"))
    module = load_checkpoint(tmp_path / "whole")
    assert sample_images(module, [1, 2]).isfinite().all()
    assert torch.equal(sample_images(module, [1, 2]), sample_images(load_checkpoint(tmp_path / "part"), [1, 2]))


def test_a_stored_run_has_the_options_that_it_was_made_with():
    """No option of post-training has the name of an older one, which would be converted when the run is read."""
    stored = plain_copy(settings())
    assert rename_options(plain_copy(settings())) == stored
    assert stored["schedule"]["decay_shape"] == "cosine"


def plain_copy(cfg):
    return OmegaConf.to_container(cfg, resolve=True)
