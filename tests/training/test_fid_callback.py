"""FID during training: by all ranks, under its own name, without a trace in the training itself."""

import json
from unittest.mock import Mock

import pytest
import torch
from kept import assert_same, state
from lightning import Callback, LightningModule, Trainer
from ranks import together
from shrunk import RUN, backbone

from pmf_lightning import UserError, build, compose, load_checkpoint
from pmf_lightning.commands import train as command
from pmf_lightning.config.compose import choices
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.evaluation.build import EvaluatorSetup, open_evaluator
from pmf_lightning.pipeline.parts import make_part
from pmf_lightning.sampling.generate import numbered_images
from pmf_lightning.train import train
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.fid import FIDEvaluation, FidSettings
from pmf_lightning.training.callbacks.throughput import ThroughputBar
from pmf_lightning.training.prepare import make_evaluator

BASE = [override for override in RUN if override != "metrics=none"]
CLASSIFIER = ["extractor=classifier", "extractor.settings.steps=3"]
FID = ["metrics=fid", *CLASSIFIER, "metrics.reference=data", "metrics.n=90", "metrics.batch_size=40"]
SIX = ["steps=6", "checkpoint.every_images=32", "sample_grid.enabled=false"]
NAME = "fd90_classifier_jit"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(folder, cache, *overrides):
    return train(compose([*BASE, *SIX, f"cache_dir={cache}", f"run_dir={folder}", *overrides]))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, cache):
    """Six steps, measured after three and at the end."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    return folder, run(folder, cache, *FID, "metrics.every_images=48", "metrics.extra_steps=[2]")


@pytest.mark.slow
def test_training_does_not_notice(measured, cache, tmp_path):
    run(tmp_path / "plain", cache, "metrics=none")
    assert_same(state(measured[0]), state(tmp_path / "plain"))
    losses = [[row["loss_u"] for row in rows(folder)] for folder in (measured[0], tmp_path / "plain")]
    assert losses[0] == losses[1]


def test_log_and_summary_name_count_and_protocol(measured):
    folder, summary = measured
    assert [row["step"] for row in rows(folder) if NAME in row] == [3, 6]
    last = rows(folder)[-1]
    assert last["nfe"] == summary["nfe"] == 1
    assert last[NAME] == summary["fd"]
    assert last["is90_classifier_jit"] == summary["is"]
    assert (summary["n"], summary["metric"], summary["protocol"]) == (90, NAME, "jit")
    assert summary["reference"].startswith("data=digits")
    assert summary["by_steps"]["2"]["nfe"] == 2
    assert summary["by_steps"]["2"]["fd"] != summary["fd"]
    assert (folder / "curves.png").is_file()


def test_the_number_is_what_the_checkpoint_gives(measured):
    """The same by hand: the averaged weights of the checkpoint, one step, the run's own noise."""
    folder, summary = measured
    module = load_checkpoint(folder)
    cfg = compose([*BASE, *FID])
    source = Digits(
        **{name: cfg.data[name] for name in ("name", "resolution", "channels", "classes", "held_out_images")}
    )
    sizes = {"resolution": 32, "channels": 1, "classes": 10, "batch_size": 40, "device": "cpu"}
    parts = (make_part(cfg, "protocol"), make_part(cfg, "extractor"), "data")
    judge = open_evaluator(*parts, source=source, cache_dir=module.config["cache_dir"], **sizes)
    options = {"steps": 1, "sampler": "average", "omega": 2.0, "t_min": 0.0, "t_max": 1.0}
    by_hand = judge(lambda labels, first: numbered_images(module, labels, 0, first, **options), 90, 10)
    assert by_hand.fid == pytest.approx(summary["fd"], rel=1e-6)
    assert by_hand.inception_score == pytest.approx(summary["is"], rel=1e-6)
    raw = load_checkpoint(folder, "raw")
    other = judge(lambda labels, first: numbered_images(raw, labels, 0, first, **options), 90, 10)
    assert other.fid != pytest.approx(summary["fd"], rel=1e-6)


def test_features_of_real_images_are_left_aside():
    """A run logs no precision and recall, which compare them pair by pair."""
    setup = Mock(spec=EvaluatorSetup, protocol=make_part(compose([*BASE, *FID]), "protocol"), extractor_name="toy")
    others = {"averages": Mock(spec=EMA), "progress": Mock(spec=ThroughputBar)}
    callback = FIDEvaluation(90, setup, every_steps=1, sampling={}, extra_steps=[], **others)
    callback.on_fit_start(Mock(spec=Trainer), Mock(spec=LightningModule, device=torch.device("cpu")))
    assert callback.evaluator is setup.open.return_value.without_features.return_value


class Modes(Callback):
    """Puts single parts of the network in other modes, and sees that they stay."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        list(pl_module.network.modules())[5].training = False

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append([part.training for part in pl_module.network.modules()])


@pytest.mark.slow
def test_modes_stay_as_they_were(cache, tmp_path, monkeypatch):
    modes, asked, measure = Modes(), [], FIDEvaluation.evaluate
    original = command.make_trainer

    def noting(self, module, generate):
        asked.append(any(part.training for part in module.network.modules()))
        return measure(self, module, generate)

    monkeypatch.setattr(FIDEvaluation, "evaluate", noting)
    monkeypatch.setattr(
        command,
        "make_trainer",
        lambda parts, folder, ours, logs: original(parts, folder, [modes, *ours], logs),
    )
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(tmp_path / "run", cache, *FID, "metrics.every_images=16", "steps=2")
    assert torch.equal(torch.get_rng_state(), before)
    assert asked == [False] * 2
    assert len(modes.seen) == 2
    assert all(seen == modes.seen[0] and seen.count(False) == 1 for seen in modes.seen)


@pytest.mark.slow
def test_a_run_killed_before_its_last_measurement_measures_when_it_goes_on(measured, cache, tmp_path):
    class Killed(Exception):
        pass

    def die(*_):
        raise Killed

    options = [*FID, "metrics.every_images=48", "metrics.extra_steps=[2]"]
    with pytest.MonkeyPatch.context() as patch:
        save = CheckpointWriter.save
        patch.setattr(CheckpointWriter, "save", lambda *args: (save(*args), args[1].global_step == 6 and die()))
        with pytest.raises(Killed):
            run(tmp_path / "run", cache, *options)
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = run(tmp_path / "run", cache, *options, "ckpt=auto")
    assert {name: summary[name] for name in ("fd", "is", "n", "by_steps")} == {
        name: measured[1][name] for name in ("fd", "is", "n", "by_steps")
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*FID, "metrics.reference=null"], r"metrics.reference=null: .*jit_in256_stats.npz.*make_stats.*metrics=none"),
        ([*FID, "metrics.reference=nowhere.npz"], r"nowhere.npz: no such file.*make_stats.*metrics=none"),
        (
            ["metrics=fid", "metrics.reference=data", "extractor.weights=nowhere.pth"],
            r"weights of Inception are not at nowhere.pth.*weights-inception.*metrics=none",
        ),
        ([*FID, "metrics.n=1"], r"metrics.n=1: set it to an integer, 2 or more"),
        ([*FID, "metrics.batch_size=0"], r"metrics.batch_size=0"),
        ([*FID, "metrics.extra_steps=[0]"], r"metrics.extra_steps=\[0\]"),
        (
            ["model=mae_tiny", *backbone("mae_tiny"), "metrics=fid", "metrics.enabled=true"],
            "generates no images to evaluate",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_missing_is_said_before_the_run(overrides, words, cache, tmp_path):
    shrunk = BASE if "mae_tiny" not in str(overrides) else []
    with pytest.raises(UserError, match=words):
        train(compose([*shrunk, f"cache_dir={cache}", f"run_dir={tmp_path / 'run'}", *overrides]))
    assert not (tmp_path / "run").exists()


def photographs(root, classes):
    """A folder of a picture in each class, named "broken": nobody may have to decode it."""
    for label in range(classes):
        (root / str(label)).mkdir(parents=True)
        (root / str(label) / "broken.png").write_bytes(b"no picture")
    return [f"data.root={root}", "data.resolution=32", "data.channels=1"]


@pytest.mark.parametrize(
    ("overrides", "classes", "words"),
    [
        (["data.held_out_fraction=0"], 2, r"data.held_out_fraction=0: .*data=folder.*\(metrics=none\)"),
        (["data.held_out_fraction=0.0"], 2, r"data.held_out_fraction=0: "),
        (
            ["model=mae_tiny", *backbone("mae_tiny"), "data.held_out_fraction=0"],
            2,
            r"data.held_out_fraction=0: .*\(sample_grid.enabled=false\)",
        ),
    ],
)
def test_images_to_compare_with_are_missed_before_any_is_decoded(overrides, classes, words, cache, tmp_path):
    shrunk = BASE if "mae_tiny" not in str(overrides) else []
    data = ["data=folder", *photographs(tmp_path / "photographs", classes), f"data.cache_dir={tmp_path / 'cache'}"]
    places = [f"cache_dir={cache}", f"run_dir={tmp_path / 'run'}"]
    judged = [] if "mae_tiny" in str(overrides) else ["metrics=small"]
    with pytest.raises(UserError, match=words):
        train(compose([*shrunk, *places, *data, *judged, *overrides]))
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("folder-*"))


class Latents(Digits):
    """Says that it provides latents."""

    latents = True


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (FID, "no classifier can evaluate"),
        (["metrics=fid", "metrics.reference=data"], "give the statistics of the pixels"),
    ],
)
def test_latents_are_not_judged_as_pixels(overrides, words):
    cfg = compose([*BASE, *overrides])
    source = Latents("digits", 32, 1, 10, 360)
    with pytest.raises(UserError, match=words):
        make_evaluator(cfg, source, build(cfg))


@pytest.mark.parametrize("data", [name for name in choices("data") if name.startswith("imagenet")])
def test_imagenet_is_judged_by_fid(data):
    cfg = compose([f"data={data}", "model=pmf_b16"])
    settings = make_part(cfg, "metrics")
    assert isinstance(settings, FidSettings)
    assert (settings.n, settings.every_images) == (5000, 10_240_000)
    assert (cfg.protocol.name, cfg.extractor.name) == ("jit", "inception")


@pytest.mark.parametrize("data", ["imagenet512", "imagenet256_latents"])
def test_the_judge_of_imagenet_can_be_chosen(data):
    chosen = compose([f"data={data}", "protocol=adm", "extractor=classifier", "metrics.n=50000"])
    assert (chosen.protocol.name, chosen.extractor.name, chosen.metrics.n) == ("adm", "classifier", 50000)
    assert not compose([f"data={data}", "metrics=none"]).metrics.enabled
    assert "classifier" in compose([f"data={data}", "metrics=small"]).metrics


def test_all_other_data_are_judged_by_their_classifier(tmp_path):
    for overrides in (["data=digits"], ["data=folder", f"data.root={tmp_path}"], ["data=digits", "model=jit_tiny"]):
        assert "classifier" in compose(overrides).metrics


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("convert", ["in=a", "out=b"]),
        ("evaluate", []),
        ("make_stats", ["out=a"]),
        ("search_guidance", []),
        ("info", []),
    ],
)
def test_other_commands_take_the_same_data(name, needed):
    cfg = compose(["data=imagenet256", *needed], name)
    assert cfg.data.name == "imagenet256"


def on_two_ranks(folder, cache, *overrides):
    command.pictures = lambda folder: (None, None)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    return run(folder, cache, *two, *overrides)


@pytest.mark.slow
def test_two_ranks_measure_together(measured, cache, tmp_path):
    summary, _ = together(2, on_two_ranks, tmp_path / "judged", cache, *FID, "metrics.every_images=48")
    together(2, on_two_ranks, tmp_path / "plain", cache, "metrics=none")
    assert_same(state(tmp_path / "judged"), state(tmp_path / "plain"))
    assert summary["fd"] == pytest.approx(measured[1]["fd"], rel=1e-2)  # averaged gradients differ in rounding
    assert [row["step"] for row in rows(tmp_path / "judged") if NAME in row] == [3, 6]
