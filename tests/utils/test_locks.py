"""Locks: one process at a time writes to the directory of a run, and to those of a sweep; a kill leaves none behind."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
from shrunk import RUN
from test_sweeps import in_folder

import pmf_lightning
from pmf_lightning.train import main
from pmf_lightning.training import run_dir
from pmf_lightning.utils import locks
from pmf_lightning.utils.locks import LockHeld, held

TINY = [*RUN, "sample_grid.enabled=false", "steps=2"]
NAMED = ["run_dir='runs/mine/${schedule.warmup_fraction}-seed${seed}'", "ckpt=auto"]
HOLD = "import os, sys\nfrom pathlib import Path\nfrom pmf_lightning.utils.locks import held\n"
HOLD += "with held(Path(sys.argv[1]), 'it', 'is here'):\n    {}print('held', flush=True)\n    sys.stdin.read()\n"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these few steps."""
    monkeypatch.setattr("pmf_lightning.training.summary.pictures", lambda folder: (None, None))


@contextmanager
def holder(path, first=""):
    """Another process that holds ``path``; ``first``: what it does besides."""
    command = [sys.executable, "-c", HOLD.format(first), str(path)]
    root = str(Path(pmf_lightning.__file__).parents[1])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close(), process.stdout.close()


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_second_is_refused_by_name_until_the_first_is_killed(tmp_path):
    path = tmp_path / ".lock"
    mine = (path, "it", "is here")
    with holder(path) as other:
        with (
            pytest.raises(LockHeld, match=rf"^it: process {other.pid} on .* \(since .*\) waits$"),
            held(path, "it", "waits"),
        ):
            pass
        assert path.is_file()  # the refused one has not taken it away
        other.send_signal(signal.SIGKILL)
        other.wait()
        with held(*mine):
            assert re.match(rf"\0process {os.getpid()} .*\n$", path.read_text())
        assert not path.exists()


def test_one_that_has_patience_waits_for_the_end_of_the_other(tmp_path):
    path, taken = tmp_path / ".lock", []
    with holder(path) as other:
        waiting = threading.Thread(target=lambda: taken.append(_pid_in(path)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert taken == []
        other.communicate(b"\n")  # it takes its file away
        waiting.join()
    assert taken == [os.getpid()]
    assert not path.exists()


def _pid_in(path):
    with held(path, "it", "waits", patience=locks.FOR_EVER):
        return int(path.read_text().split()[1])


def test_what_a_killed_process_has_forked_holds_nothing(tmp_path):
    """Workers that load data live on for some seconds."""
    path = tmp_path / ".lock"
    child = "os.write(w, b'begun'), __import__('time').sleep(20), os._exit(0)"
    forks = f"r, w = os.pipe()\n    if not os.fork(): {child}\n    os.read(r, 5)\n    "
    with holder(path, forks) as other:
        other.kill()
        other.wait()
        with held(path, "it", "waits"):
            pass


def test_without_locks_of_the_file_system_a_warning_is_all(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    for _ in range(2):
        with held(tmp_path / ".lock", "it", "waits"):
            pass
    assert capsys.readouterr().out.count("this file system has no locks (No locks available)") == 1


@pytest.mark.slow
def test_a_run_keeps_others_out_of_its_directory(call_command, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    with holder(folder / ".lock") as other:
        status, _, errors = call_command(main, *TINY, f"run_dir={folder}", "ckpt=auto")
        assert status == 2
        assert f"error: run_dir={folder}: process {other.pid} on " in errors
        assert "is training there; wait for it, or end it" in errors
        assert {path.name for path in files(folder)} == {".lock", "checkpoints"}  # no error.txt: it is not its run
        monkeypatch.setenv("LOCAL_RANK", "1")
        with run_dir.lock_run_dir(folder):  # the first process of the run has it already
            pass
    monkeypatch.delenv("LOCAL_RANK")
    assert call_command(main, *TINY, f"run_dir={folder}", "ckpt=auto")[0] == 0
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("name", [None, "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_the_first_process_of_all_nodes_alone_locks_the_directory(tmp_path, monkeypatch, name):
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(variable, "1" if variable == name else "0")
    assert run_dir.first_process() == (name is None)
    with run_dir.lock_run_dir(tmp_path):
        assert (tmp_path / ".lock").exists() == (name is None)


@pytest.mark.slow
def test_a_sweep_that_another_one_is_about_is_refused_at_once(call_command, tmp_path):
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    with holder(mine / ".0.5-seed0.sweep") as other:
        before = files(mine)
        status, _, errors = call_command(main, "-m", *TINY, *NAMED, "schedule.warmup_fraction=0,0.5")
        assert status == 2
        assert re.search(
            rf"^error: run_dir=runs/mine/0.5-seed0: process {other.pid} on .* uses it in its sweep; wait", errors, re.M
        )
        assert files(mine) == before
        assert (
            call_command(main, "-m", *TINY, *NAMED, "schedule.warmup_fraction=0,0.25")[0] == 0
        )  # others may share the folder
    assert not (set(mine.glob(".*")) - {mine / ".0.5-seed0.sweep"})


@pytest.mark.slow
def test_of_two_identical_sweeps_one_is_run(call_command, tmp_path):
    """The second begins while the first is in its first run."""
    command, go, waits = ["-m", *TINY, *NAMED, "schedule.warmup_fraction=0,0.5"], tmp_path / "go", tmp_path / "waits"
    fault = ("faults:wait_for_file", str(go), str(waits))
    first = forked.FORKS.Process(target=in_folder, args=(str(tmp_path), command, fault))
    first.start()
    while not waits.exists():
        assert first.is_alive(), (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.01)
    status, _, errors = call_command(main, *command)
    go.touch()
    assert status == 2
    assert f"run_dir=runs/mine/0-seed0: process {first.pid} on " in errors
    assert forked.finish(first) == 0
    assert "sweep of 2 runs: 2 finished, 0 failed, 0 left" in (tmp_path / "log").read_text()
    for name in ("0-seed0", "0.5-seed0"):
        assert len((tmp_path / "runs/mine" / name / "metrics.jsonl").read_text().splitlines()) == 2
