"""Runs of W&B, offline: labels, a run per job, runs that go on, and runs that are closed whatever happens."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from offline_runs import logged_out, quiet_and_offline, read, sessions
from omegaconf import OmegaConf
from shrunk import RUN

from pmf_lightning import UserError, compose
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.tracking import wandb_runs
from pmf_lightning.tracking.wandb_runs import Job, labels, sync_command
from pmf_lightning.train import main, train
from pmf_lightning.training.loggers.wandb import WandbLogger
from pmf_lightning.training.settings import LoggedRun
from pmf_lightning.utils.provenance import SWEEP

QUICK = [*RUN, "sample_grid.enabled=false", "checkpoint.every_images=16", "logger=wandb"]
PLAIN = {"name": "pmf_tiny", "data": {"name": "digits"}, "study": None}
STUDY = {"name": "pmf_table2", "scale": "small", "arm": "x-large"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Offline, in an environment that wants every run to be one and the same; no pictures in the end."""
    quiet_and_offline(monkeypatch)
    for name, value in {"RUN_ID": "shared", "RESUME": "must", "NAME": "shared"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr("pmf_lightning.commands.train.finish", lambda *_: {})


def run(folder, *overrides):
    return train(compose([*QUICK, f"run_dir={folder}", *overrides]))


def test_labels_of_a_run_that_stands_alone():
    said = ("optimizer.lr=0.1", "logger=wandb", "logger.wandb.group=g", "run_dir=a/b", "ckpt=last", "hydra/launcher=x")
    found = labels(PLAIN, Path("runs/b"), Job(said))
    assert (found.name, found.group, found.job_type) == ("optimizer.lr=0.1", None, "train")
    assert found.tags == ("pmf_tiny", "digits")
    assert labels(PLAIN, Path("runs/b"), Job()).name == "b"
    assert (
        labels({key: PLAIN[key] for key in ("name", "data")}, Path("runs/b"), Job()).group is None
    )  # older checkpoints


def test_labels_of_a_multirun():
    sweep = ("-m", "model=jit_tiny", "optimizer.lr=0.1,0.2", "seed=0,1", "logger=wandb", "+trainer.x=1")
    jobs = [
        ("model=jit_tiny", f"optimizer.lr={lr}", f"seed={seed}", "logger=wandb") for lr in (1, 2) for seed in (0, 1)
    ]
    found = [labels(PLAIN, Path("runs/b"), Job(job, sweep)) for job in jobs]
    assert {one.group for one in found} == {"model=jit_tiny optimizer.lr=0.1,0.2 seed=0,1 +trainer.x=1"}
    assert len({one.name for one in found}) == 4
    assert [one.job_type for one in found] == ["model=jit_tiny optimizer.lr=1"] * 2 + [
        "model=jit_tiny optimizer.lr=2"
    ] * 2
    assert labels(PLAIN, Path("b"), Job(("seed=1",), ("-m", "sweeper=optuna", "seed=0,1"))).group == "seed=0,1"
    experiment = labels(PLAIN, Path("b"), Job(("experiment=four_objectives", "seed=1"), sweep))
    assert (experiment.name, experiment.group) == ("seed=1", "four_objectives")


def test_labels_of_a_study():
    job = Job(
        ("experiment=pmf_table2/small", "objective.prediction=x", "seed=2"), ("-m", "experiment=pmf_table2/small")
    )
    found = labels({**PLAIN, "study": STUDY}, Path("runs/x-large-seed2"), job)
    assert (found.group, found.job_type) == ("pmf_table2-small", "x-large")
    assert found.name == "objective.prediction=x seed=2"
    assert found.tags == ("pmf_table2", "small", "x-large")


def test_labels_fit_and_stay_different():
    long = "data.root=" + "x" * 200
    found = [labels(PLAIN, Path("b"), Job((f"{long}{end}",), ("-m", f"{long}{end},2"))) for end in "ab"]
    for one in found:
        assert (len(one.name), len(one.group), len(one.job_type)) == (128, 128, 64)
    assert all(getattr(found[0], part) != getattr(found[1], part) for part in ("name", "group", "job_type"))


@pytest.mark.slow
def test_jobs_of_a_multirun_have_runs_of_their_own(call_command, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as moved:  # W&B's own process begins in another folder and stays there
        moved.chdir(tmp_path / "elsewhere")
        wandb.teardown()
        wandb.setup()
    sweep = [*QUICK, "steps=1", "seed=0,1", "run_dir=out/${seed}"]
    status, printed, errors = call_command(main, "-m", *sweep)
    assert status == 0, errors
    folders = [session for seed in (0, 1) for session in sessions(tmp_path / "out" / f"{seed}")]
    found = [read(folder) for folder in folders]
    assert len(found) == len({one.run.run_id for one in found} - {"shared"}) == 2
    assert [one.exit_code for one in found] == [0, 0]
    assert [one.config["seed"] for one in found] == [0, 1]
    assert len({one.run.run_group for one in found}) == len({one.run.job_type for one in found}) == 1
    assert found[0].run.run_group.startswith("backbone.width=32")
    assert len({one.run.display_name for one in found} - {"shared"}) == 2
    told = [line.partition("upload it: ")[2] for line in printed.splitlines() if "wandb sync" in line]
    assert [tmp_path / shlex.split(line)[2] for line in told] == folders
    for one in found:
        assert one.defined == {"*": "images"}
        assert {row["images"] for row in one.rows} == {16}


def test_sessions_of_the_same_second_are_sent_too(tmp_path):
    names = [
        "offline-run-20260101_000000-ab12",
        "offline-run-20260101_000000-ab12-1",
        "offline-run-20260101_000001-ab12",
    ]
    for name in [*names, "offline-run-20260101_000000-ab123", "run-20260101_000000-ab12"]:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    sent = shlex.split(sync_command(tmp_path, "ab12"))
    assert sent == ["wandb", "sync", *(str(tmp_path / "wandb" / name) for name in names)]


@pytest.mark.slow
def test_a_run_goes_on_in_its_place_and_elsewhere_in_another(tmp_path, capsys):
    run(tmp_path / "run", "steps=1")
    first = read_checkpoint(tmp_path / "run")["wandb_run"]
    run(tmp_path / "run", "steps=2", "ckpt=last")
    begun, gone_on = sessions(tmp_path / "run")
    assert read(begun).run.run_id == read(gone_on).run.run_id == first
    assert read_checkpoint(tmp_path / "run")["wandb_run"] == first
    assert [row["images"] for row in read(gone_on).rows if "loss_u" in row] == [32]
    assert sync_command(tmp_path / "run", first) in capsys.readouterr().out
    assert shlex.split(sync_command(tmp_path / "run", first)) == ["wandb", "sync", str(begun), str(gone_on)]
    for branch in "ab":
        run(tmp_path / branch, "steps=3", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    ids = {read(sessions(tmp_path / branch)[0]).run.run_id for branch in "ab"}
    assert len(ids | {first}) == 3


def test_a_job_that_raises_closes_its_run(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("the middle of a step")

    with monkeypatch.context() as broken:
        broken.setattr("pmf_lightning.pipeline.module.GenerativeModule.training_step", fail)
        with pytest.raises(ValueError, match="the middle of a step"):
            run(tmp_path / "broken", "steps=1")
        broken.setattr("pmf_lightning.commands.train.make_trainer", fail)
        with pytest.raises(ValueError, match="the middle of a step"):
            run(tmp_path / "unopened", "steps=1")
    run(tmp_path / "whole", "steps=1")
    broken, whole = (read(sessions(tmp_path / name)[0]) for name in ("broken", "whole"))
    assert (broken.exit_code, whole.exit_code) == (1, 0)
    assert broken.run.run_id != whole.run.run_id
    assert not sessions(tmp_path / "unopened")
    assert not [row for row in broken.rows if "images" in row]
    assert [row["images"] for row in whole.rows if "loss_u" in row] == [16]


OPTIONS = {"project": "p", "entity": None, "group": None, "name": None, "mode": None}


def test_the_first_device_alone_opens_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = WandbLogger(**OPTIONS, run=LoggedRun(tmp_path, 16, PLAIN))
    logger.open()
    logger.log_metrics({"loss_u": 1.0}, 0)
    logger.finalize("success")
    assert not list(tmp_path.iterdir())


def test_what_is_logged_without_a_step_belongs_to_the_last_one(tmp_path):
    logger = WandbLogger(**OPTIONS, run=LoggedRun(tmp_path, 16, PLAIN))
    logger.open()
    for row, step in (({"own": 1.0}, None), ({"loss_u": 2.0}, 4), ({"own": 3.0}, None)):
        logger.log_metrics(row, step)
    logger.finalize("success")
    (session,) = sessions(tmp_path)
    rows = [row for row in read(session).rows if "images" in row]
    assert [(row.get("own"), row["images"]) for row in rows] == [(1.0, 16), (None, 80), (3.0, 80)]


def test_bad_input_is_said_before_training(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"logger\.wandb\.mode=ofline: .* did you mean offline"):
        WandbLogger(**{**OPTIONS, "mode": "ofline"}, run=LoggedRun(tmp_path, 16, PLAIN))
    logged_out(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"(?i)logger=wandb: no API key .*mode=offline"):
        wandb_runs.check(OPTIONS)


def test_disabled_costs_nothing(tmp_path):
    run(tmp_path / "run", "steps=1", "logger.wandb.mode=disabled")
    assert not sessions(tmp_path / "run")


def test_jobs_in_other_processes_know_their_sweep(monkeypatch):
    def job(mode, *arguments, task=("seed=0",)):
        said = SimpleNamespace(mode=mode, overrides=OmegaConf.create({"task": list(task)}))
        monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(HydraConfig, "get", lambda: said)
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        return wandb_runs.hydra_job()

    assert job(RunMode.RUN, "seed=0") == Job(("seed=0",))
    assert job(RunMode.RUN, task=["run_dir='r/${seed}'"]) == Job(("run_dir='r/${seed}'",))
    assert job(RunMode.MULTIRUN, task=[r"name=my\ run"]).overrides == ('name="my run"',)
    assert job(RunMode.MULTIRUN, "--multirun", "seed=3,4").sweep == ("--multirun", "seed=3,4")
    monkeypatch.setenv(SWEEP, "-m seed=0,1 'backbone.heads={u: 1}'")
    for mode in (RunMode.RUN, RunMode.MULTIRUN):  # of a process that a launcher made
        assert job(mode, "seed=0").sweep == ("-m", "seed=0,1", "backbone.heads={u: 1}")
