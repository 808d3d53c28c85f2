"""What a run records of itself, the scale that an experiment is run at, and what is left of a run that failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import python

from pmf_lightning import UserError, compose
from pmf_lightning.config.compose import at_scale
from pmf_lightning.training.prepare import run_request
from pmf_lightning.training.run_dir import choose, record_errors
from pmf_lightning.utils import provenance


@pytest.fixture
def experiments(tmp_path):
    for name in ("table/small", "table/paper", "table/study", "figure/small", "figure/study", "smoke"):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("seed=1", "seed=1"),
        ("-m experiment=table seed=1", "-m experiment=table/small seed=1"),
        ("-m scale=paper experiment=table", "-m experiment=table/paper"),
        ("experiment=table scale=small", "experiment=table/small"),
        ("experiment=table/paper", "experiment=table/paper"),
        ("experiment=paper/table", "experiment=table/paper"),
        ("experiment=smoke", "experiment=smoke"),
    ],
)
def test_the_scale_picks_the_file_of_an_experiment(given, wanted, experiments):
    assert at_scale(given.split(), experiments) == wanted.split()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scale=paper", "scale=paper: it belongs to an experiment; add experiment="),
        ("experiment=table scale=huge", "scale=huge: experiments have the scales small and paper"),
        ("experiment=smoke scale=paper", "scale=paper: experiment=smoke has one scale only"),
        ("experiment=figure scale=paper", "experiment=figure scale=paper: it has the scale small only"),
        ("experiment=tabel", "experiment=tabel: there is no such experiment; did you mean table?"),
        ("experiment=table/study", "experiment=table/study: there is no such experiment; did you mean table"),
        ("experiment=table/paper scale=small", "scale=small: experiment=table/paper is the scale paper"),
        ("experiment=table,figure", "experiment=table,figure: an experiment is a sweep; run one at a time"),
    ],
)
def test_a_scale_that_is_not_there_is_refused(given, message, experiments):
    with pytest.raises(UserError) as refused:
        at_scale(given.split(), experiments)
    assert str(refused.value).startswith(message)


@pytest.mark.slow
def test_a_run_records_what_it_is_made_with():
    text = "import json; from pmf_lightning.utils.provenance import provenance; print(json.dumps(provenance('cpu')))"
    record = json.loads(python("-c", text).stdout)
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["device"] == "cpu"
    assert record["threads"] >= 1
    assert record["command"].startswith("python ")
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_process_of_a_launcher_records_the_command_of_its_sweep(monkeypatch):
    monkeypatch.setenv(provenance.SWEEP, "-m experiment=pmf_table2/small seed=0,1")
    assert provenance.command_line() == "python -m pmf_lightning.train -m experiment=pmf_table2/small seed=0,1"


def test_the_commit_is_the_one_of_git():
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    here = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert provenance.commit() == (here or None)


@pytest.mark.parametrize(
    ("error", "line"), [(UserError("a=1: no"), "a=1: no"), (ValueError("b\nc"), "ValueError: b c")]
)
def test_a_failure_is_kept_until_an_attempt_ends_well(error, line, tmp_path):
    where = str(tmp_path / "run"), "auto", True
    with pytest.raises(type(error)), record_errors(str(tmp_path / "none"), None):
        raise error
    assert not (tmp_path / "none").exists()
    with pytest.raises(type(error)), record_errors(*where):
        raise error
    assert (tmp_path / "run" / "error.txt").read_text() == f"{line}\n"
    with record_errors(*where):
        pass
    assert not (tmp_path / "run" / "error.txt").exists()


def test_a_failure_is_not_kept_in_the_directory_of_another_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = run_request(compose(["experiment=smoke"]))
    with record_errors(None, None):
        first = choose(request)
    with pytest.raises(UserError), record_errors(None, None):
        raise UserError("before a directory was chosen")
    assert not (first / "error.txt").exists()

    def fail_late():
        with record_errors(None, None):
            folders.append(choose(request))
            raise ValueError("after it")

    folders = []
    with pytest.raises(ValueError, match="after it"):
        fail_late()
    (second,) = folders
    assert (second / "error.txt").read_text() == "ValueError: after it\n"


def test_a_refused_run_leaves_no_directory_unless_it_was_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request, folders = run_request(compose(["experiment=smoke"])), []

    def work(run_dir, written):
        folders.append(Path(run_dir) if run_dir else choose(request))
        if written is not None:
            (folders[-1] / written).parent.mkdir(parents=True, exist_ok=True)
            (folders[-1] / written).write_text("kept")
        raise UserError("a=1: no")

    def refuse(run_dir, ckpt=None, written=None):
        with pytest.raises(UserError), record_errors(run_dir, ckpt):
            work(run_dir, written)
        return {path.name for path in folders[-1].glob("*")} if folders[-1].exists() else None

    assert refuse(None) is None
    assert refuse(None, written="config.yaml") is None
    assert not list((tmp_path / "runs").glob("*"))
    assert refuse("new", "auto") is None
    assert refuse("new", "auto", "metrics.jsonl") == {"metrics.jsonl", "error.txt"}
    assert refuse("other", "auto", "checkpoints/last.ckpt") == {"checkpoints", "error.txt"}
    Path("mine").mkdir()
    assert refuse("mine", written="notes.txt") == {"notes.txt", "error.txt"}
