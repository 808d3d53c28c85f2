"""Callbacks and loggers of callbacks= and logger=: built from their sections, refused in one line, resumed."""

import json
import math
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from shrunk import RUN

from pmf_lightning import UserError, compose
from pmf_lightning.config.compose import choices
from pmf_lightning.data.datamodule import ImageData
from pmf_lightning.data.dataset import DataSource, FirstImages
from pmf_lightning.data.sources.digits import Digits
from pmf_lightning.pipeline.checkpoints import load_checkpoint, read_checkpoint
from pmf_lightning.train import main, train
from pmf_lightning.training.callbacks.early_stopping import EarlyStopping
from pmf_lightning.training.loggers.build import make_loggers
from pmf_lightning.training.loggers.jsonl import JSONLLogger
from pmf_lightning.training.prepare import logger_sections, make_added_callbacks, open_source, prepare
from pmf_lightning.training.run_log import RunLog
from pmf_lightning.training.settings import LoggedRun

SHORT = [*RUN, "sample_grid.enabled=false", "steps=4"]


def run(folder, *overrides):
    return train(compose([*SHORT, f"run_dir={folder}", *overrides]))


class Counter(Callback):
    """A user's callback with state: the steps that it saw."""

    def __init__(self, start: int = 0):
        self.steps = start

    def on_train_batch_end(self, *_):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Idle(Callback):
    """Acts in validation alone."""

    def on_validation_end(self, *_):
        pass


def made(*overrides):
    return make_added_callbacks(compose([*SHORT, *overrides]))


@pytest.mark.slow
def test_early_stopping_ends_a_run_by_a_training_metric_and_another_configuration_resumes_it(tmp_path, capsys):
    stopping = ["callbacks=[early_stopping,lr_monitor]", "callbacks.early_stopping.monitor=loss_u"]
    counting = ["+callbacks.mine._target_=test_added.Counter", "+callbacks.mine.start=100"]
    folder = tmp_path / "run"
    summary = run(folder, *stopping, *counting, "callbacks.early_stopping.stopping_threshold=1e6")
    assert summary["steps"] == 2  # seen before the second step, which is still taken
    assert "Stopping threshold reached: loss_u" in summary["early_stopping"]
    assert summary["stopped_early"] is False
    stored = read_checkpoint(folder)
    assert stored["global_step"] == 2
    states = {name.partition("{")[0]: state for name, state in stored["callbacks"].items()}
    assert states["Counter"] == {"steps": 102}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert states["EarlyStopping"]["best_score"] == float("inf")
    assert any(name.startswith("lr-MuonAdam") for name in rows[0])
    assert load_checkpoint(folder).config["name"] == "pmf_tiny"  # the classes of callbacks are never built
    same = [*stopping, *counting, "callbacks.early_stopping.stopping_threshold=1e6", "ckpt=auto"]
    assert run(folder, *same) == summary  # it is finished
    again = run(folder, *stopping, *counting, "ckpt=auto")
    assert (again["steps"], again["early_stopping"]) == (4, None)
    assert "callbacks.early_stopping.stopping_threshold" in capsys.readouterr().out
    states = {name.partition("{")[0]: state for name, state in read_checkpoint(folder)["callbacks"].items()}
    assert states["Counter"] == {"steps": 104}


def test_a_larger_patience_continues_a_run_that_was_ended():
    old, new = EarlyStopping("loss_u", patience=1), EarlyStopping("loss_u", patience=3)
    for value in (1.0, 2.0):
        stops, _ = old._evaluate_stopping_criteria(torch.tensor(value))
    assert stops
    new.load_state_dict(old.state_dict())
    assert (new.patience, new.wait_count, new.best_score) == (3, 1, 1.0)
    assert not new._evaluate_stopping_criteria(torch.tensor(2.0))[0]


def looked_at(stopping, values, due=3):
    """Show ``stopping`` a log whose column "fd" gets the value of each step, if it has one; return the last step."""
    log = Mock(spec=JSONLLogger, latest={"loss_u": (1, 1.0)})
    trainer = Mock(spec=Trainer, log_every_n_steps=1, loggers=[log], is_global_zero=True, should_stop=False)
    trainer.strategy, trainer.global_step = SimpleNamespace(broadcast=lambda value: value), 0
    stopping.connect("fd", due)
    stopping.on_train_start(trainer, Mock(spec=LightningModule))
    for step, value in enumerate(values, 1):
        trainer.global_step = step
        if value is not MISSING:
            log.latest["fd"] = step, value
        stopping.on_train_batch_start(trainer, Mock(spec=LightningModule))
        if trainer.should_stop:
            break
    return trainer.global_step


MISSING = "not measured in this step"


def test_early_stopping_counts_each_value_once():
    stopping = EarlyStopping("fd", patience=2)
    assert looked_at(stopping, [1.0, *[MISSING] * 5, 2.0, *[MISSING] * 5]) == 12
    assert (stopping.wait_count, stopping.reason) == (1, None)
    assert looked_at(EarlyStopping("fd", patience=2), [1.0, MISSING, 2.0, MISSING, 2.0, MISSING]) == 5


@pytest.mark.parametrize("check_finite", [True, False])
def test_a_value_that_is_not_finite_stops_a_run_that_checks_it(check_finite):
    """The log has null for it."""
    stopping = EarlyStopping("fd", patience=1, check_finite=check_finite)
    assert looked_at(stopping, [1.0, None, 3.0]) == 2
    assert ("is not finite" in stopping.reason) == check_finite
    assert math.isfinite(stopping.best_score)


def test_a_column_that_is_never_logged_is_named_once_it_is_due():
    stopping = EarlyStopping("fd")
    assert looked_at(stopping, [MISSING] * 3) == 3
    with pytest.raises(UserError, match="monitor=fd is not logged; there is loss_u"):
        looked_at(stopping, [MISSING] * 4)
    assert looked_at(EarlyStopping("fd", strict=False), [MISSING] * 4) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+callbacks.a._target_=lightning.pytorch.callbacks.ModelCheckpoint"], "checkpoint.every_images="),
        (
            ["+callbacks.a={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: x}"],
            "callbacks=early_stopping",
        ),
        (["+callbacks.a._target_=lightning.pytorch.callbacks.TQDMProgressBar"], "progress bar"),
        (["+callbacks.a._target_=test_added.Idle"], "only in on_validation_end"),
        (["+callbacks.a._target_=torch.nn.Identity"], "is not a callback of Lightning"),
        (["+callbacks.a.patience=3"], "callbacks.a: it names no class"),
        (["+callbacks.a={_target_: test_added.Counter, strat: 3}"], "callbacks.a: "),
        (["callbacks=device_stats"], "pip install psutil"),
    ],
)
def test_callbacks_that_cannot_act_are_one_line(overrides, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr("pmf_lightning.training.callbacks.added.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        made(*overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_callbacks_and_one_that_is_switched_off():
    names = [type(one).__name__ for one in made("callbacks=[early_stopping,lr_monitor]")]
    assert names == ["EarlyStopping", "LearningRateMonitor"]
    assert made("callbacks=early_stopping", "callbacks.early_stopping=null") == []
    assert made("callbacks=null") == made() == []


@pytest.mark.parametrize(
    ("choice", "words"), [("tensorboard", "pip install tensorboard"), ("mlflow", "pip install mlflow")]
)
def test_a_missing_package_is_named(choice, words, monkeypatch):
    monkeypatch.setattr("pmf_lightning.training.loggers.build.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^logger\.{choice}: .*pip install {choice}$"):
        logger_sections(compose([*SHORT, f"logger={choice}"]))


def test_loggers_are_added_to_the_files_and_find_the_run_directory(tmp_path):
    mine = ["+logger.mine._target_=lightning.pytorch.loggers.CSVLogger", "+logger.mine.save_dir=${run_dir}/mine"]
    sections = logger_sections(compose([*SHORT, "logger=csv", *mine]))
    files, csv, mine = make_loggers(sections, LoggedRun(tmp_path, 16, {"seed": 0}))
    files.log_metrics({"loss_u": 1.0}, 0)
    assert (tmp_path / "metrics.jsonl").is_file()
    assert isinstance(csv, CSVLogger)
    assert (csv.root_dir, mine.save_dir) == (str(tmp_path / "csv"), str(tmp_path / "mine"))
    csv.save()
    assert "seed: 0" in (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["null", "1e6"])
def test_early_stopping_by_the_distance_of_the_run(threshold, tmp_path):
    stopping = ["callbacks=early_stopping", f"callbacks.early_stopping.stopping_threshold={threshold}"]
    judged = ["metrics=small", "metrics.every_images=8", "metrics.classifier.steps=5"]
    summary = run(tmp_path / "run", *stopping, *judged)
    assert summary["fd"] > 0
    assert bool(summary["early_stopping"]) == (threshold == "1e6")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_early_stopping_knows_the_distance_of_the_run():
    stopping = EarlyStopping("fd")
    stopping.connect("fd_digits", 100)
    assert stopping.monitor == "fd_digits"
    with pytest.raises(UserError, match="metrics=none measures no distance"):
        EarlyStopping("fd").connect(None, 0)


def test_the_log_holds_complete_lines_from_before_the_directory_is_known_and_errors(tmp_path, capsys):
    for word in ("one", "two"):  # the second session is a resumed run
        log = RunLog()
        with pytest.raises(ValueError), log.recording():  # noqa: PT011, PT012
            print(f"before {word}")
            log.open(tmp_path)
            print("a bar: 10 %\ra bar: 20 %\ra bar: 30 %", file=sys.stderr)
            print("no end of the line", end="")
            raise ValueError("some\nreason")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("before")] == ["before one", "before two"]
    assert lines[0].startswith("--- 20")
    assert lines[2] == "a bar: 30 %"
    assert lines[-1] == "error: ValueError: some reason"
    assert "before one" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["pmf_digits", "jit_tiny", "drifting_tiny", "mae_tiny"])
@pytest.mark.parametrize("kind", choices("debug"))
def test_every_way_to_debug_composes_for_every_kind_of_model(model, kind):
    cfg = compose([f"model={model}", "trainer=gpu", f"debug={kind}"])
    assert cfg.steps <= 200
    assert (cfg.metrics.enabled, cfg.trainer.accelerator) == (False, "cpu" if kind == "fdr" else "gpu")
    assert cfg.train_images == (cfg.batch if kind == "overfit" else None)
    assert compose([f"model={model}", f"debug={kind}", "steps=7"]).steps == 7


def test_the_first_images_are_the_same_in_every_step():
    source = Digits("digits", 32, 1, 10, 360)
    few = FirstImages(source, 16)
    assert isinstance(few, DataSource)
    data = ImageData(few, seed=0, batch=16, micro_batch=None, num_workers=0)
    assert data.accumulation(1) == 1
    assert len(few.train()) == 16
    assert (few.classes, few.latents, len(few.held_out())) == (10, False, 360)


def test_a_run_trains_on_its_first_images_and_looks_for_room(monkeypatch):
    cfg, asked = compose([*SHORT, "train_images=16"]), []
    monkeypatch.setattr(ImageData, "check_room", lambda data: asked.append(data))
    parts = prepare(cfg, open_source(cfg))
    assert (len(parts.data.train_set), len(parts.source.train())) == (16, 1437)
    assert asked == [parts.data]


@pytest.mark.slow
def test_a_short_run_with_the_profiler_and_hydras_files(tmp_path, call_command):
    folder = tmp_path / "run"
    more = ["hydra.output_subdir=.hydra", "debug=profiler", "steps=2", f"run_dir={folder}"]
    status, output, _ = call_command(main, *RUN, *more)
    assert status == 0
    assert f"profile: {folder}/fit-profile" in output
    assert "run_training_batch" in output
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert not (tmp_path / ".hydra").exists()
    assert "profile: " in (folder / "train.log").read_text()
    status, output, errors = call_command(main, *RUN, "debug=overfit", "steps=2", f"run_dir={tmp_path / 'few'}")
    assert status == 0, errors
