"""Kills, signals, full disks and damaged files: nothing is lost, and a run goes on as if nothing had been."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import faults
import forked
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from shrunk import RUN
from test_train import assert_same, rows, weights

from pmf_lightning import UserError, compose
from pmf_lightning.pipeline import checkpoint_io
from pmf_lightning.pipeline.checkpoint_io import is_intact, newest_intact
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.sample import sample
from pmf_lightning.training import run_dir
from pmf_lightning.training.callbacks.checkpoint import CheckpointWriter
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.callbacks.skip_nonfinite import SkipNonFinite
from pmf_lightning.training.callbacks.stop_signals import StopSignals
from pmf_lightning.training.callbacks.throughput import ThroughputBar

# 16 steps of two micro-batches, 8 saves.
TINY = [*RUN, "sample_grid.enabled=false", "batch=8", "micro_batch=4", "images=128", "checkpoint.every_images=16"]
STEPS = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The processes forked later inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    forked.run([*TINY, f"run_dir={folder}/run"], folder / "log")
    return folder / "run"


def assert_as_if_nothing_had_been(folder, straight):
    assert_same(weights(straight), weights(folder))
    assert losses(folder) == losses(straight)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_early"]) == (STEPS, False)
    assert not list((folder / "checkpoints").glob("*.draft"))


def losses(folder):
    return [(row["step"], row["loss_u"], row["loss_v"]) for row in rows(folder)]


def saved_step(folder):
    """The step of the checkpoint, which must be whole; 0: there is none yet."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return 0
    assert is_intact(path)
    return read_checkpoint(path)["global_step"]


# Where a run is killed, and the step of the checkpoint then; saves are due after every second step.
TEN_KILLS = [
    (("signal_before", 1, signal.SIGKILL), 0),
    (("die_in_save", "half a file", 1), 0),
    (("die_in_save", "after_replace", 1), 2),
    (("signal_before", 4, signal.SIGKILL, 2), 2),
    (("die_in_save", "fsync", 2), 4),
    (("half_a_row", 6), 4),
    (("signal_before", 9, signal.SIGKILL), 8),
    (("die_at", "pmf_lightning.training.resume:find_again"), 8),
    (("die_in_save", "replace", 3), 12),
    (("die_at", "pmf_lightning.commands.train:finish"), 16),
]


@pytest.mark.slow
def test_ten_kills_at_named_places(straight, tmp_path):
    """In steps and between micro-batches, in saves, in a row of the log, while resuming, and before the summary."""
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto"]
    for (name, *arguments), saved in TEN_KILLS:
        forked.run(command, tmp_path / "log", (f"faults:{name}", *arguments), code=-signal.SIGKILL)
        assert saved_step(folder) == saved, (name, *arguments)
        assert any((folder / "checkpoints").glob("*.draft")) == (
            name == "die_in_save" and "after_replace" not in arguments
        )
    forked.run(command, tmp_path / "log")
    assert_as_if_nothing_had_been(folder, straight)


MOMENTS = ["half a file", "fsync", "link", "replace", "after_replace"]


@pytest.mark.slow
def test_a_kill_at_every_moment_of_a_save(straight, tmp_path):
    """One run, killed in a save again and again; the names of two checkpoints are given in each."""
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto", "checkpoint.keep_last=2"]
    before = 0
    for moment in MOMENTS:
        process = forked.start(command, tmp_path / "log", ("faults:die_in_save", moment, 2))
        assert forked.finish(process) == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
        assert any((folder / "checkpoints").glob("*.draft")) == (moment != "after_replace"), moment
        assert saved_step(folder) == before + (4 if moment == "after_replace" else 2), moment
        assert all(is_intact(path) for path in (folder / "checkpoints").glob("*.ckpt"))
        before = saved_step(folder)
    forked.run(command, tmp_path / "log")
    assert_as_if_nothing_had_been(folder, straight)
    assert names(folder) == {"last.ckpt", "step-00000014.ckpt", "step-00000016.ckpt"}


def names(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def stop_with(number, command, folder, log, environment=(), more=()):
    """Send a signal in the middle of step 5 of a run; return what it printed."""
    faults = ("faults:both", ("set_environment", dict(environment)), ("signal_before", 5, number), *more)
    output = forked.run(command, log, faults)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["steps"] == saved_step(folder) == 5
    return output


NOT_YET = "checkpoint.every_images=1000000"  # nothing but the stop itself saves


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_and_stop(straight, tmp_path, number):
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto", NOT_YET]
    output = stop_with(number, command, folder, tmp_path / "log")
    assert f"{number.name}: stopping after this step" in output
    assert f"run_dir={folder} ckpt=last" in output
    assert "queued" not in output
    forked.run(command, tmp_path / "log")
    assert_as_if_nothing_had_been(folder, straight)


SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
echo "scontrol has its reasons" >&2
exit {code}
"""
TASK = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "pmf"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "4"}


def slurm(tmp_path, code, **variables):
    """What SLURM sets for a task that srun started, and a scontrol that writes down what it is asked."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(SCONTROL.format(calls=tmp_path / "calls", code=code))
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    return {**TASK, "SLURM_JOB_ID": "123", "PATH": path, "PWD": str(tmp_path), **variables}


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_queues_the_job_again_and_it_goes_on(straight, tmp_path):
    environment = slurm(tmp_path, 0)
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto", NOT_YET]
    output = stop_with(signal.SIGUSR1, command, folder, tmp_path / "log", environment.items())
    assert calls(tmp_path) == ["requeue 123"]
    assert "job 123 is queued again" in output
    assert not list(tmp_path.glob("hpc_ckpt*"))  # Lightning's own answer
    forked.run(command, tmp_path / "log", ("faults:set_environment", environment))
    assert calls(tmp_path) == ["requeue 123"]
    assert_as_if_nothing_had_been(folder, straight)


@pytest.mark.parametrize(
    ("number", "ckpt", "code", "variables", "asked", "said"),
    [
        (signal.SIGUSR2, "auto", 0, ARRAY, ["requeue 71_4"], "job 71_4 is queued again"),
        (signal.SIGUSR1, "auto", 1, {}, ["requeue 123"], "scontrol requeue 123 failed: scontrol has its reasons"),
        (signal.SIGUSR1, "null", 0, {}, [], "job 123 is not queued again: .* add run_dir=... ckpt=auto"),
        (signal.SIGTERM, "auto", 0, {}, [], "SIGTERM: stopping"),
    ],
    ids=["array", "refused", "would begin anew", "SIGTERM"],
)
def test_when_slurm_is_asked(tmp_path, number, ckpt, code, variables, asked, said):
    environment, folder = slurm(tmp_path, code, **variables), tmp_path / "run"
    command = [*TINY, f"run_dir={folder}", f"ckpt={ckpt}"]
    measured = [("scripted_quality", {2: 5.0, 4: 3.0})]
    output = stop_with(number, command, folder, tmp_path / "log", environment.items(), measured)
    assert calls(tmp_path) == asked
    assert re.search(said, output)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"metric": "fd_scripted", "value": 3.0, "step": 4}
    assert summary["fd"] is None  # that of step 4 is not of the weights of step 5


def test_a_stop_in_the_last_step_is_none(straight, tmp_path):
    forked.run([*TINY, f"run_dir={tmp_path}/run"], tmp_path / "log", ("faults:signal_before", STEPS, signal.SIGTERM))
    assert_as_if_nothing_had_been(tmp_path / "run", straight)


def test_files_that_the_kernel_refuses(straight, tmp_path):
    """Checkpoints of steps 4 to 7 are too large for a limit of the process; logs are not."""
    folder = tmp_path / "run"
    output = forked.run([*TINY, f"run_dir={folder}"], tmp_path / "log", ("faults:small_files", 4, 7))
    path = folder / "checkpoints" / "last.ckpt"
    assert output.count("is NOT saved") == 1
    assert f"step 4: {path} is NOT saved (File too large; it needs" in output
    assert "MB are free); the previous one remains; training continues and tries again at step 5" in output
    assert f"step 8: {path} is saved again" in output
    assert json.loads((folder / "summary.json").read_text())["failed_saves"] == 4
    assert "failed_saves" in output
    assert_as_if_nothing_had_been(folder, straight)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_save_that_fails_half_way_leaves_the_previous_one(tmp_path, number):
    """... and the run ends, after a failed save, in a kill."""
    folder = tmp_path / "run"
    faults = ("faults:both", ("refuse_saves", number, 4), ("signal_before", 6, signal.SIGKILL))
    output = forked.run([*TINY, f"run_dir={folder}"], tmp_path / "log", faults, code=-signal.SIGKILL)
    assert f"is NOT saved ({os.strerror(number)}" in output
    assert names(folder) == {"last.ckpt"}
    assert saved_step(folder) == 2


def test_an_end_that_cannot_be_saved_is_an_error(straight, tmp_path):
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto"]
    output = forked.run(command, tmp_path / "log", ("faults:refuse_saves", errno.ENOSPC, STEPS - 1), code=4)
    assert f"error: step {STEPS}: {folder}/checkpoints/last.ckpt could not be written (No space left" in output
    assert "the previous one remains. Free some space there, and resume with run_dir=" in output
    assert saved_step(folder) == STEPS - 2
    forked.run(command, tmp_path / "log")
    assert_as_if_nothing_had_been(folder, straight)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting takes other rights; test_files_that_the_kernel_refuses needs none")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("messages", ["elsewhere", "there too"])
@pytest.mark.parametrize("blind", [False, True], ids=["seen beforehand", "met while writing"])
def test_a_full_disk(straight, small_disk, tmp_path, blind, messages):
    """No file takes a byte more: checkpoints, rows of the log and pictures, or messages too, fail for four steps."""
    folder = small_disk / "run"
    # Step 5 has a picture, and rows of the log are longer than what is left of its last block.
    pictures = ["sample_grid.enabled=true", "sample_grid.every_images=40", "diagnostics.t_bins=200"]
    fault, elsewhere = ("faults:full_disk", str(small_disk), 4, 7, blind), messages == "elsewhere"
    output = forked.run([*TINY, *pictures, f"run_dir={folder}"], (tmp_path if elsewhere else small_disk) / "log", fault)
    assert not elsewhere or output.count("last.ckpt is NOT saved (No space left on device; it needs") == 1
    assert not elsewhere or "0.0 MB are free" in output
    assert not elsewhere or output.count("metrics.jsonl is not written (No space left on device)") == 1
    assert not elsewhere or output.count("the grid of step 5 is not written") == 1
    assert f"{folder}/checkpoints/last.ckpt is saved again" in output
    assert json.loads((folder / "summary.json").read_text())["failed_saves"] == 4
    assert {path.name for path in (folder / "grids").glob("*raw.png")} == {"0000000080-raw.png", "0000000120-raw.png"}
    assert_as_if_nothing_had_been(folder, straight)


def test_a_bad_image_is_skipped(tmp_path):
    forked.run([*TINY, f"run_dir={tmp_path}/run"], tmp_path / "log", ("faults:bad_images", [5]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["skipped_steps"]) == (STEPS, 1)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_bad_images_for_ever_stop_the_run_which_can_go_on(straight, tmp_path):
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto"]
    fault = ("faults:bad_images", [*range(6, STEPS + 1)])
    output = forked.run(command, tmp_path / "log", fault, code=3)
    assert "error: step 10: the loss is not finite, 5 steps in a row" in output
    assert saved_step(folder) == 4
    forked.run(command, tmp_path / "log")
    assert_as_if_nothing_had_been(folder, straight)


def test_numbered_checkpoints_share_the_room(tmp_path):
    folder = tmp_path / "run"
    forked.run([*TINY, f"run_dir={folder}", "images=72", "checkpoint.keep_last=3"], tmp_path / "log")
    assert names(folder) == {"last.ckpt", *(f"step-{step:08d}.ckpt" for step in (6, 8, 9))}
    there = folder / "checkpoints"
    assert (there / "last.ckpt").samefile(there / "step-00000009.ckpt")
    assert read_checkpoint(there / "step-00000006.ckpt")["global_step"] == 6


def test_the_best_is_kept(tmp_path):
    """Scores by step; a kill after step 7, where the best is that of step 4. The last step is the best of all."""
    scores = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: float("nan"), 12: 2.0, 14: 2.5, 16: 1.75}
    folder, command = tmp_path / "run", [*TINY, f"run_dir={tmp_path}/run", "ckpt=auto", "checkpoint.every_images=48"]
    best = folder / "checkpoints" / "best.ckpt"
    faults = ("faults:both", ("scripted_quality", scores), ("signal_before", 8, signal.SIGKILL))
    forked.run(command, tmp_path / "log", faults, code=-signal.SIGKILL)
    assert read_checkpoint(best)["best"] == {"metric": "fd_scripted", "value": 3.0, "step": 4}
    assert read_checkpoint(best)["global_step"] == 4
    assert saved_step(folder) == 6
    faults = ("faults:both", ("scripted_quality", scores), ("signal_before", 11, signal.SIGKILL))
    forked.run(command, tmp_path / "log", faults, code=-signal.SIGKILL)
    assert read_checkpoint(best)["global_step"] == 4  # not 8, the best of this session
    forked.run(command, tmp_path / "log", ("faults:scripted_quality", scores))
    assert read_checkpoint(best)["best"] == {"metric": "fd_scripted", "value": 1.75, "step": STEPS}
    last = read_checkpoint(folder)
    assert (last["global_step"], last["best"]["value"]) == (STEPS, 1.75)
    assert json.loads((folder / "summary.json").read_text())["best"] == last["best"]
    pictures = sample(compose([f"ckpt={best}", f"out={tmp_path}/out", "n=1"], "sample"))
    assert pictures["grid"].is_file()


def writer(folder, every_steps=3):
    """What saves the checkpoints of ``folder``, every three steps, with a measurement every two."""
    callbacks = {"averages": Mock(spec=EMA), "progress": Mock(spec=ThroughputBar)}
    finite, signals = Mock(spec=SkipNonFinite, in_a_row=0), Mock(spec=StopSignals)
    return CheckpointWriter(folder, every_steps, 1, finite, signals, faults.Scripted({}, sampling={}, **callbacks))


def take_steps(saving, scores, full=(), steps=6):
    """Take steps with ``scores``, and the disk full at the steps ``full``; return those of best.ckpt after each."""
    progress = SimpleNamespace(ready=0, completed=0)
    trainer = Mock(spec=Trainer, global_step=0, max_steps=steps, is_global_zero=True)
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(current=progress, total=progress))
    trainer.fit_loop = SimpleNamespace(epoch_loop=loop)
    module, best = Mock(spec=LightningModule), saving.path.with_name("best.ckpt")

    def save(path):
        checkpoint = {"global_step": trainer.global_step, "state_dict": {}, "ema": {}, "config": {}}
        saving.on_save_checkpoint(trainer, module, checkpoint)
        trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)

    def write(*arguments, original=checkpoint_io.write):
        if trainer.global_step in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    trainer.save_checkpoint, found = save, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_io, "write", write)
        saving.setup(trainer, module, "fit")
        saving.on_train_start(trainer, module)
        for step in range(1, steps + 1):
            trainer.global_step = step
            if step in scores:
                saving.evaluation.latest, saving.evaluation.measured_at = scores[step], step
            hook = saving.on_train_end if step == steps else saving.on_train_batch_start
            hook(trainer, module)
            found.append(read_checkpoint(best)["global_step"] if best.is_file() else None)
    return found


@pytest.mark.parametrize(
    ("scores", "full", "best", "failed"),
    [
        ({2: 5.0, 4: 3.0, 6: 4.0}, (), [None, 2, 2, 4, 4, 4], 0),
        ({2: 5.0, 4: 4.0, 6: 3.0}, (), [None, 2, 2, 4, 4, 6], 0),
        ({2: 5.0, 4: 3.0, 6: 4.0}, (4,), [None, 2, 2, 2, 2, 6], 1),
        ({2: float("nan"), 4: 3.0, 6: 3.0}, (), [None, None, None, 4, 4, 4], 0),
    ],
    ids=["in the middle", "at the end", "of those that are saved", "a number"],
)
def test_the_best_is_the_lowest_that_is_saved(tmp_path, scores, full, best, failed):
    saving, resumed = writer(tmp_path), writer(tmp_path)
    assert take_steps(saving, scores, full) == best
    resumed.load_state_dict(saving.state_dict())
    assert resumed.failed == failed  # counted over all sessions


@pytest.mark.parametrize(
    ("metric", "there", "known"),
    [("fd_scripted", True, True), ("fid50k", True, False), ("fd_scripted", False, False)],
    ids=["the same", "another metric", "another folder"],
)
def test_the_best_value_goes_on_with_its_metric_beside_its_file(tmp_path, metric, there, known):
    resumed, checkpoint = writer(tmp_path), {"best": {"metric": metric, "value": 3.0, "step": 4}}
    if there:
        toy(tmp_path / "best.ckpt", 4)
    resumed.on_load_checkpoint(Mock(spec=Trainer), Mock(spec=LightningModule), checkpoint)
    assert resumed.best == (checkpoint["best"] if known else None)
    resumed.evaluation = None  # metrics=none
    resumed.on_load_checkpoint(Mock(spec=Trainer), Mock(spec=LightningModule), checkpoint)


def toy(path, step, seconds=0):
    """A small checkpoint written ``seconds`` after the others."""
    path.parent.mkdir(exist_ok=True, parents=True)
    checkpoint = {"global_step": step, "state_dict": {"w": torch.arange(1000.0) + step}, "ema": {}, "config": {}}
    checkpoint_io.write(checkpoint, path)
    os.utime(path, (seconds, seconds))
    return path


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def to_resume(folder, ckpt):
    return run_dir.checkpoint_to_resume(str(ckpt), folder)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut short", "one bit", "gone"])
@pytest.mark.parametrize("ckpt", ["last", "auto"])
def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one(tmp_path, capsys, damage, ckpt):
    there = tmp_path / "checkpoints"
    last, best = toy(there / "last.ckpt", 9, 9), toy(there / "best.ckpt", 3, 3)
    numbers = [toy(there / checkpoint_io.numbered(step), step, step) for step in (5, 7)]
    assert to_resume(tmp_path, ckpt) == last
    assert capsys.readouterr().out == ""
    damage(last)
    assert to_resume(tmp_path, ckpt) == numbers[1]
    word = "missing" if damage is Path.unlink else "damaged"
    assert f"warning: {last} is {word}; resuming {numbers[1]}" in capsys.readouterr().out
    cut(numbers[1])
    flip(numbers[0])
    assert to_resume(tmp_path, ckpt) == best
    best.unlink()
    if damage is Path.unlink:
        numbers[0].unlink(), numbers[1].unlink()
    if damage is Path.unlink and ckpt == "auto":
        assert to_resume(tmp_path, ckpt) is None
        return
    with pytest.raises(
        UserError, match="holds no checkpoint" if damage is Path.unlink else "start a new run in another"
    ):
        to_resume(tmp_path, ckpt)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(tmp_path, damage):
    asked, other = toy(tmp_path / "step-00000002.ckpt", 2), toy(tmp_path / "best.ckpt", 1)
    damage(asked)
    with pytest.raises(UserError, match=rf"ckpt={asked}: .*; intact next to it: ckpt={other}"):
        read_checkpoint(to_resume(tmp_path, asked))
    damage(other)
    with pytest.raises(UserError, match="no other checkpoint next to it is intact"):
        read_checkpoint(to_resume(tmp_path, asked))


def test_the_newest_is_the_one_written_last(tmp_path):
    """An abandoned branch may have had higher steps."""
    toy(tmp_path / checkpoint_io.numbered(300), 300, 1)
    newest = toy(tmp_path / checkpoint_io.numbered(120), 120, 2)
    assert newest_intact(tmp_path) == newest
    checkpoint_io.remove_oldest(tmp_path, 1)
    assert [*tmp_path.iterdir()] == [newest]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    draft, last = toy(tmp_path / "last.draft", 4), tmp_path / "last.ckpt"
    checkpoint_io.name(draft, last, [tmp_path / "best.ckpt"])
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert is_intact(last)
    assert (tmp_path / "best.ckpt").read_bytes() == last.read_bytes()


def test_what_a_killed_save_left_is_never_written_into(tmp_path):
    """It may be the second name of a checkpoint that is whole."""
    number = toy(tmp_path / checkpoint_io.numbered(3), 3)
    os.link(number, tmp_path / "last.draft")
    before = number.read_bytes()
    toy(tmp_path / "last.draft", 4)
    assert number.read_bytes() == before


def test_files_and_folders_reach_the_disk_in_order(tmp_path, monkeypatch):
    done = []
    for call in ("fsync", "replace", "link"):
        original = getattr(os, call)

        def noted(*arguments, call=call, original=original):
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else str(arguments[1])
            done.append((call, Path(target).name))
            return original(*arguments)

        monkeypatch.setattr(os, call, noted)
    folder = tmp_path / "checkpoints"
    draft = toy(folder / "last.draft", 1)
    checkpoint_io.name(draft, folder / "last.ckpt", [folder / "best.ckpt"])
    named = [("link", "best.link.draft"), ("replace", "best.ckpt"), ("replace", "last.ckpt")]
    assert done == [("fsync", "last.draft"), *named, ("fsync", "checkpoints")]


def test_the_size_is_that_of_the_file(tmp_path):
    tensor = torch.zeros(3000, 100)
    checkpoint = {"a": {"b": [tensor, tensor[:5]], "c": (torch.zeros(7),)}, "n": 3}
    checkpoint_io.write(checkpoint, tmp_path / "file.ckpt")
    assert checkpoint_io.size(checkpoint) == pytest.approx((tmp_path / "file.ckpt").stat().st_size, rel=0.01)


# Two processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def start_two(overrides, tmp_path, fault=None):
    port = free_port()
    return [
        forked.start([*TINY, *TWO, *overrides], tmp_path / f"log{rank}", fault, rank=rank, port=port) for rank in (0, 1)
    ]


def run_two(overrides, tmp_path, fault=None):
    processes = start_two(overrides, tmp_path, fault)
    codes = [forked.finish(process) for process in processes]
    assert codes == [0, 0], (tmp_path / "log0").read_text()[-2000:] + (tmp_path / "log1").read_text()[-2000:]


@pytest.fixture(scope="module")
def straight_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_two([f"run_dir={folder}/run"], folder)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_killed(straight_two, tmp_path, killed):
    folder, overrides = tmp_path / "run", [f"run_dir={tmp_path}/run", "ckpt=auto"]
    processes = start_two(overrides, tmp_path, ("faults:on_rank", killed, "signal_before", 6, signal.SIGKILL))
    assert forked.finish(processes[killed]) == -signal.SIGKILL
    assert forked.finish(processes[1 - killed]) == 5
    assert f"resume with run_dir={folder} ckpt=last" in (tmp_path / f"log{1 - killed}").read_text()
    assert "another process of this run has ended" in (tmp_path / f"log{1 - killed}").read_text()
    assert saved_step(folder) == 4
    run_two(overrides, tmp_path)
    assert_as_if_nothing_had_been(folder, straight_two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_stops_both_after_the_same_step(straight_two, tmp_path, rank):
    folder, overrides = tmp_path / "run", [f"run_dir={tmp_path}/run", "ckpt=auto", NOT_YET]
    run_two(overrides, tmp_path, ("faults:on_rank", rank, "signal_before", 4, signal.SIGTERM))
    assert 4 <= saved_step(folder) < STEPS
    run_two(overrides, tmp_path)
    assert_as_if_nothing_had_been(folder, straight_two)


@pytest.mark.slow
def test_a_disk_that_refuses_the_first_of_two(straight_two, tmp_path):
    folder = tmp_path / "run"
    run_two([f"run_dir={folder}"], tmp_path, ("faults:small_files", 4, 7))
    assert "step 4" in (tmp_path / "log0").read_text()
    assert "NOT saved" not in (tmp_path / "log1").read_text()
    assert json.loads((folder / "summary.json").read_text())["failed_saves"] == 4
    assert_as_if_nothing_had_been(folder, straight_two)


@pytest.mark.slow
def test_one_process_goes_on_as_two(tmp_path):
    """The batch, the images and the draws stay; only sums are taken in another order."""
    folder, whole, step = tmp_path / "run", "micro_batch=null", 7  # the log has the losses of the last micro-batch
    forked.run([*TINY, whole, f"run_dir={tmp_path}/one"], tmp_path / "log")
    forked.run([*TINY, whole, f"run_dir={folder}"], tmp_path / "log", ("faults:signal_before", step, signal.SIGTERM))
    assert saved_step(folder) == step
    run_two([f"run_dir={folder}", "ckpt=last", whole], tmp_path)
    one, two = (np.array(losses(path)) for path in (tmp_path / "one", folder))
    np.testing.assert_array_equal(one[:step], two[:step])
    np.testing.assert_allclose(one[step : step + 2], two[step : step + 2], rtol=1e-5)
    np.testing.assert_allclose(one, two, rtol=1e-3)
