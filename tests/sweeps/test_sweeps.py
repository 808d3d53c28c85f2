"""Multiruns: what is said before and after, sweep.json, failing runs, stops, kills, plugins, and what it will cost."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import forked
import pytest
import torch
from omegaconf import OmegaConf
from processes import python
from shrunk import RUN

from pmf_lightning import UserError, compose
from pmf_lightning.cli import command
from pmf_lightning.config.command_line import readable
from pmf_lightning.pipeline.build import build
from pmf_lightning.profiling.step_memory import step_flops
from pmf_lightning.sweeps import cost, jobs, messages, subprocess_run, sweep_file
from pmf_lightning.sweeps.hydra_callback import Sweep
from pmf_lightning.sweeps.jobs import measured
from pmf_lightning.sweeps.plan import PlannedRun, common_parent, planned
from pmf_lightning.sweeps.preflight import Preflight
from pmf_lightning.sweeps.sweep_file import SweepRun
from pmf_lightning.train import main
from pmf_lightning.training.prepare import run_request
from pmf_lightning.training.settings import RunRequest
from pmf_lightning.utils.cache import RUN_DIR
from pmf_lightning.utils.errors import Diverged, NotSaved, ProcessLost
from pmf_lightning.utils.provenance import SWEEP
from pmf_lightning.utils.rng import BatchRows

TINY = [*RUN, "sample_grid.enabled=false", "steps=2"]
NAMED = ["run_dir='runs/mine/${schedule.warmup_fraction}-seed${seed}'", "ckpt=auto"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these few steps."""
    monkeypatch.setattr("pmf_lightning.training.summary.pictures", lambda folder: (None, None))


def multirun(*overrides, params=None):
    """The configuration of a multirun, as a callback of Hydra gets it."""
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": params}
    return OmegaConf.create(
        {"hydra": {"sweeper": sweeper, "overrides": {"task": list(overrides)}, "sweep": {"dir": "runs/multirun"}}}
    )


def finish(folder, **summary):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "summary.json").write_text(json.dumps({"stopped_early": False, **summary}))
    return folder


def said(errors):
    return [line for line in errors.splitlines() if line.startswith("error: ")]


# --- the whole command


@pytest.mark.slow
def test_a_bad_run_in_the_middle_does_not_end_the_others(call_command, tmp_path):
    status, output, errors = call_command(main, "-m", *TINY, *NAMED, "schedule.warmup_fraction=0,7,0.5")
    assert status == 2
    assert "Traceback" not in errors
    assert len(said(errors)) == 1
    assert "schedule.warmup_fraction=7" in said(errors)[0]
    folder = tmp_path / "runs" / "mine"
    assert (folder / "0-seed0" / "summary.json").is_file()
    assert (folder / "0.5-seed0" / "summary.json").is_file()
    assert "schedule.warmup_fraction" in (folder / "7-seed0" / "error.txt").read_text()
    assert "3 arms x 1 seed in runs/mine: none begun" in output
    assert "sweep of 3 runs: 2 finished, 1 failed, 0 left" in output
    assert output.rstrip().endswith("compare the runs: python -m pmf_lightning.report runs/mine")
    listed = sweep_file.read(folder)["arms"]
    assert [(one["arm"], one["run_dir"], one["state"]) for one in listed] == [
        ("schedule.warmup_fraction=0", "0-seed0", "finished"),
        ("schedule.warmup_fraction=7", "7-seed0", "failed"),
        ("schedule.warmup_fraction=0.5", "0.5-seed0", "finished"),
    ]
    assert not list(folder.glob(".jobs*"))


@pytest.mark.slow
def test_runs_that_choose_their_directory_are_listed_with_it(call_command, tmp_path):
    status, output, _ = call_command(main, "-m", *TINY, "seed=0,1")
    assert status == 0
    (file,) = (tmp_path / "runs" / "multirun").glob("*/sweep.json")
    listed = sweep_file.read(file.parent)["arms"]
    assert [(one["seed"], one["state"], one["error"]) for one in listed] == [
        (0, "finished", None),
        (1, "finished", None),
    ]
    for one in listed:
        folder = file.parent / one["run_dir"]
        assert json.loads((folder / "summary.json").read_text())["steps"] == 2
        assert OmegaConf.load(folder / "config.yaml").seed == one["seed"]
        assert compose(one["overrides"]).seed == one["seed"]
    assert f"report runs/multirun/{file.parent.name}" in output


def test_a_sweep_without_any_input_ends_before_its_first_run(call_command, tmp_path):
    status, output, errors = call_command(main, "-m", *TINY, *NAMED, "data=imagenet64", "schedule.warmup_fraction=0,1")
    assert status == 2
    assert len(said(errors)) == 1
    assert "all 2 remaining runs are refused: data=imagenet64 needs its WebDataset shards" in said(errors)[0]
    assert not (tmp_path / "runs" / "mine").exists()
    assert "2 arms" in output


def test_two_runs_do_not_share_a_directory(call_command, tmp_path):
    status, _, errors = call_command(main, "-m", *TINY, "run_dir=runs/one", "seed=0,1")
    assert status == 2
    assert "both seed=0 and seed=1 would write there" in said(errors)[0]
    assert not (tmp_path / "runs" / "one").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in training", "before it"])
def test_a_signal_ends_the_whole_sweep(call_command, tmp_path, monkeypatch, where):
    signals = [signal.SIGINT]  # a second one would end the run at once

    def interrupt(*_):
        if signals:
            os.kill(os.getpid(), signals.pop())

    if where == "in training":
        monkeypatch.setattr("pmf_lightning.training.callbacks.loss_by_time.LossByTime.on_train_batch_end", interrupt)
    else:
        monkeypatch.setattr("pmf_lightning.training.prepare.check_inputs", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        status, output, errors = call_command(main, "-m", *TINY, *NAMED, "steps=20", "schedule.warmup_fraction=0,0.5")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 0
    assert "Traceback" not in errors
    assert "SIGINT: the sweep ends here; the same command resumes it" in output
    assert "sweep of 2 runs: 0 finished, 0 failed, 2 left" in output
    folder = tmp_path / "runs" / "mine"
    assert not (folder / "0.5-seed0").exists()
    if where == "in training":
        (line,) = (line for line in output.splitlines() if line.startswith("stopped at step"))
        command = shlex.split(line.partition("pmf_lightning.train ")[2])
        assert "-m" not in command
        again = compose(command)  # of this run alone
        assert (again.run_dir, again.schedule.warmup_fraction, again.ckpt) == ("runs/mine/0-seed0", 0, "last")
        assert json.loads((folder / "0-seed0" / "summary.json").read_text())["stopped_early"]
        assert (folder / "0-seed0" / "checkpoints" / "last.ckpt").is_file()
    assert [one["state"] for one in sweep_file.read(folder)["arms"]] == [
        "stopped" if where == "in training" else "missing",
        "missing",
    ]


def files(folder):
    """Bytes and times of everything in a run directory."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_is_missing(tmp_path):
    asked = ["-m", *TINY, *NAMED, "schedule.warmup_fraction=0,0.25,0.5", "log_every_steps=1"]
    log, done, second = tmp_path / "log", tmp_path / "runs/mine/0-seed0", tmp_path / "runs/mine/0.25-seed0"
    process = forked.FORKS.Process(target=in_folder, args=(str(tmp_path), asked, ("faults:kill_in_run", 2)))
    process.start()
    assert forked.finish(process) == -signal.SIGKILL, log.read_text()[-3000:]
    before = files(done)
    assert done / "summary.json" in before
    assert not (second / "summary.json").exists()
    process = forked.FORKS.Process(target=in_folder, args=(str(tmp_path), asked))
    process.start()
    assert forked.finish(process) == 0, log.read_text()[-3000:]
    assert files(done) == before
    assert [one["state"] for one in sweep_file.read(tmp_path / "runs/mine")["arms"]] == ["finished"] * 3
    output = log.read_text()
    assert "3 arms x 1 seed in runs/mine: 1 finished, 1 stopped" in output
    assert f"{done.relative_to(tmp_path)} is finished already" in output
    assert "sweep of 3 runs: 3 finished, 0 failed, 0 left" in output


def in_folder(folder, asked, fault=None):
    """Call the command in ``folder``; its output goes to a log there."""
    os.chdir(folder)
    file = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    import torch

    torch.set_num_threads(1)
    forked.spoil(fault)
    sys.argv = ["train", *asked]
    main()


@pytest.mark.slow
def test_runs_on_several_devices_have_processes_of_their_own(tmp_path):
    """Lightning starts more processes with the command line of the first: it must not be the multirun's."""
    devices = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = train_elsewhere(tmp_path, *TINY, *NAMED, *devices, "schedule.warmup_fraction=0.5,7")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "sweep of 2 runs: 1 finished, 1 failed, 0 left" in done.stdout
    assert done.stdout.count("2 arms x 1 seed") == 1
    assert len(said(done.stderr)) == 1
    assert len((tmp_path / "runs/mine/0.5-seed0/metrics.jsonl").read_text().splitlines()) == 2


# --- jobs: what fails, and how


@pytest.mark.slow
@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([None, None, None], 0),
        ([Diverged("nan"), None, UserError("bad")], 3),
        ([UserError("bad"), NotSaved("full"), None], 4),
        ([ProcessLost("gone"), Diverged("nan"), UserError("bad")], 5),
        ([None, RuntimeError("a mistake of ours"), None], 1),
        (
            [
                None,
                OSError(errno.ENOSPC, "No space left on device", "a/b"),
                torch.OutOfMemoryError("CUDA out of memory."),
            ],
            1,
        ),
    ],
)
def test_the_highest_code_of_all_jobs(call_command, errors, code):
    done = []

    def job(cfg):
        done.append(cfg.seed)
        if errors[cfg.seed]:
            raise errors[cfg.seed]

    status, _, printed = call_command(command("info")(job), "-m", "seed=0,1,2")
    assert done == [0, 1, 2]
    assert status == code
    assert [one.code > 0 for one in jobs.outcomes()] == [bool(error) for error in errors]
    assert ("Traceback" in printed) == any(type(error) is RuntimeError for error in errors)


def test_no_two_jobs_write_to_one_folder(call_command):
    done = []
    job = command("sample")(lambda cfg: done.append(cfg.seed))
    status, _, printed = call_command(job, "-m", "ckpt=x", "seed=0,1")
    assert (status, done) == (2, [0])
    assert said(printed) == [
        "error: out=samples: an earlier run of this sweep has written there; let it vary, as in 'out=samples/${seed}'"
    ]
    assert call_command(job, "-m", "ckpt=x", "seed=0,1", "out=samples/${seed}")[0] == 0
    assert done == [0, 0, 1]


@pytest.mark.slow
def test_the_same_error_is_said_once(call_command):
    def job(cfg):
        raise UserError(f"bad {min(cfg.seed, 1)}")

    assert said(call_command(command("info")(job), "-m", "seed=0,1,2")[2]) == [
        "error: bad 0",
        "error: bad 1",
        "error: the same as above",
    ]


# --- the plan


def test_arms_are_expanded_as_hydra_does():
    asked = [
        "model=pmf_tiny",
        "objective.prediction=u",
        "seed=range(0,2)",
        "run_dir='r/${objective.prediction}-${steps}-${seed}'",
    ]
    plan = planned(multirun(*asked, params={"objective.prediction": "x,u", "steps": "2,3", "seed": 5}))
    arms = [one.arm for one in plan]  # the command line wins over the file's params, and references follow it
    assert [(arm.arm, arm.seed) for arm in arms] == [("steps=2", 0), ("steps=2", 1), ("steps=3", 0), ("steps=3", 1)]
    assert {one.cfg.objective.prediction for one in plan} == {"u"}
    assert [str(arm.run_dir) for arm in arms] == ["r/u-2-0", "r/u-2-1", "r/u-3-0", "r/u-3-1"]


def test_a_sweeper_that_chooses_on_the_way_has_no_plan():
    config = multirun("seed=0,1")
    config.hydra.sweeper["_target_"] = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    assert planned(config) is None


def test_states_and_lines(tmp_path):
    folders = {name: tmp_path / name for name in ("a0", "a1", "b0", "b1")}
    finish(folders["a0"], images_per_second=50.0)
    finish(folders["a1"], stopped_early=True)
    folders["b0"].mkdir()
    (folders["b0"] / "error.txt").write_text("diverged in step 7\n")
    arms = [SweepRun(name[0], int(name[1]), folder) for name, folder in folders.items()]
    assert [arm.state for arm in arms] == ["finished", "stopped", "failed", "missing"]
    about = {"study": "s", "title": "t", "scale": "small"}
    assert messages.start_message(arms, about, tmp_path) == [
        "s: t",
        f"2 arms x 2 seeds at scale small in {tmp_path}: 1 finished, 1 stopped, 1 failed",
        "  left: a seed 1 (begun)",
        "  left: b seed 0, 1",
    ]
    assert messages.end_message(arms, tmp_path) == [
        "sweep of 4 runs: 1 finished, 1 failed, 2 left",
        "  b seed 0: diverged in step 7",
        "  left: a seed 1 (begun)",
        "  left: b seed 1",
        f"compare the runs: python -m pmf_lightning.report {tmp_path}",
    ]


def test_sweep_json_keeps_runs_of_earlier_sweeps(tmp_path):
    finish(tmp_path / "a0")
    old, new = (
        [SweepRun("a", 0, tmp_path / "a0"), SweepRun("a", 1, tmp_path / "a1")],
        [SweepRun("b", 0, tmp_path / "b0")],
    )
    sweep_file.write(tmp_path, old, {"study": None})
    sweep_file.write(tmp_path, new, {"study": "s"})
    found = sweep_file.read(tmp_path)
    assert found["study"] == "s"
    assert [(one["run_dir"], one["state"]) for one in found["arms"]] == [("b0", "missing"), ("a0", "finished")]
    (tmp_path / "sweep.json").write_text("{")
    assert sweep_file.read(tmp_path) is None


def test_the_folder_of_a_sweep(tmp_path):
    apart, unknown = SweepRun("", 0, tmp_path / "a" / "b"), SweepRun("", 0, None)
    assert common_parent([apart, SweepRun("", 1, tmp_path / "a" / "c")], tmp_path) == tmp_path / "a"
    assert (
        common_parent([apart, unknown], tmp_path / "else") == common_parent([], tmp_path / "else") == tmp_path / "else"
    )


def test_another_run_in_the_way_is_seen_beforehand(tmp_path):
    finish(tmp_path / "7")
    asked = ["model=pmf_tiny", "seed=7", f"run_dir='{tmp_path}/${{seed}}'", "ckpt=auto"]
    (one,) = planned(multirun(*asked))
    assert f"{tmp_path}/7" in one.arm.error
    assert not one.finished


def test_finished_runs_that_are_to_go_on_are_planned_counted_and_locked(tmp_path, monkeypatch, capsys):
    asked = ["model=pmf_tiny", f"run_dir={tmp_path}/${{seed}}", "ckpt=auto", "seed=0,1"]
    for one in planned(multirun(*asked, "steps=64")):
        folder = finish(one.arm.run_dir, steps=64, images_per_second=1.0)
        OmegaConf.save(OmegaConf.create(run_request(one.cfg).config), folder / "config.yaml")
    assert [one.finished for one in planned(multirun(*asked, "steps=64"))] == [True, True]
    locked = []
    monkeypatch.setattr("pmf_lightning.sweeps.hydra_callback._lock_run_dirs", locked.extend)
    monkeypatch.setattr(Sweep, "_abort_if_all_refused", lambda self, left: None)
    monkeypatch.setenv(SWEEP, "")
    longer = multirun(*asked, "steps=66")
    longer.hydra.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    sweep = Sweep("h200", 0.1)
    sweep.on_multirun_start(longer)
    said = capsys.readouterr().out
    assert f"1 arm x 2 seeds in {tmp_path}: 2 stopped" in said
    assert "of training at the images/s of the finished runs" in said
    assert locked == [tmp_path / "0", tmp_path / "1"]
    sweep._record(jobs.Outcome(0, run_dir=str(tmp_path / "0")))
    sweep._record(jobs.Outcome(1))  # a signal came before it
    assert [arm.state for arm in sweep.arms] == ["finished", "stopped"]


def test_what_runs_are_compared_by():
    study = OmegaConf.create({"study": {"measure": "fid50k_jit"}})
    assert measured(study, {"fd": 3.0, "fid50k_jit": 2}) == 2.0
    alone = OmegaConf.create({"study": None})
    assert measured(alone, {"fd": 3.5, "class_accuracy": 0.5}) == 3.5
    assert measured(alone, {"fd": None, "fid5k_jit": 7.25, "fid5k": "x"}) == 7.25
    assert measured(alone, {"fd": None}) is measured(study, {}) is None


# --- cost


@pytest.mark.parametrize(
    "model",
    ["pmf_digits", "jit_tiny"],
)
def test_the_count_by_blocks_is_that_of_all_operations(model):
    cfg = compose([f"model={model}"])
    module = build(cfg, empty=True)
    queues = cfg.get("queues")
    rivals = (queues.positives, queues.negatives) if queues else (1, 0)
    whole = step_flops(module.network, module.objective, cfg.batch, BatchRows(0, 1), rivals)
    assert cost.flops_per_image(cfg) * cfg.batch == pytest.approx(whole, rel=0.02)


def test_alike_runs_are_counted_once(monkeypatch):
    counted = []
    monkeypatch.setattr(cost, "flops_per_image", lambda cfg: counted.append(cfg) or 1e9)
    arithmetic, base = cost.Arithmetic(), ["model=pmf_b16", "data=imagenet256"]
    flops = [
        arithmetic(compose([*base, *more])) for more in (["seed=0"], ["seed=1", "optimizer=adam"], ["images=2048"])
    ]
    assert len(counted) == arithmetic.counted == 1
    assert flops == [400364 * 1024e9, 400364 * 1024e9, 2048e9]
    arithmetic(compose([*base, "objective.prediction=u"]))
    arithmetic(compose([*base, "data.resolution=512", "backbone.patch=32"]))
    arithmetic(compose([*base, "activation_checkpointing=true"]))
    arithmetic(compose([*base, "posttrain=fd_sim"]))
    assert arithmetic.counted == 5


def test_what_is_said_on_paper():
    h200 = cost.load_cluster("h200")
    line = cost.analytic_estimate([1e21, 1e21, 2e21], h200, 2)
    days = 4e21 / (h200.peak_tflops * 1e12 * h200.share_of_peak) / 86400
    assert f"4,000 exaFLOP of training (1,000 to 2,000 each): about {days:.3g} H200-days at 45% of peak" in line
    assert "assumed, not measured" in line
    assert "2 distinct configurations counted" in line
    assert "about 0.62 H200-hours" in cost.analytic_estimate([1e18], h200, 1)
    assert "each" not in cost.analytic_estimate([1e18], h200, 1)


def test_minutes_come_from_runs_of_the_same_arm_where_there_are_some(tmp_path):
    done = [
        SweepRun("slow", 0, finish(tmp_path / "s0", images_per_second=10.0)),
        SweepRun("fast", 0, finish(tmp_path / "f0", images_per_second=100.0)),
    ]
    left = [(SweepRun("slow", 1, None), 6000), (SweepRun("new", 0, None), 6600)]  # 600 s, and 120 s at 55 a second
    assert cost.measured_estimate(left, done).startswith("about 12 minutes of training")
    assert cost.measured_estimate(left, []) is cost.measured_estimate([], done) is None
    assert cost.measured_estimate(left, [SweepRun("slow", 0, finish(tmp_path / "x", images_per_second=0.0))]) is None


def test_a_large_run_is_told_its_cost_before_its_data_are_missed(call_command, monkeypatch):
    monkeypatch.setattr(cost, "flops_per_image", lambda cfg: 1e12)
    status, output, errors = call_command(main, "model=pmf_b16", "data=imagenet256", "perceptual=none")
    assert status == 2
    assert "410 exaFLOP of training: about 10.7 H200-days at 45% of peak" in output
    assert "set data.root" in said(errors)[0]
    assert "exaFLOP" not in call_command(main, "model=pmf_digits", "steps=0")[1]


def test_a_run_that_cannot_be_estimated_prints_its_error_once(call_command, tmp_path):
    status, output, errors = call_command(main, "model=pmf_tiny", "data=shards", f"data.root={tmp_path}")
    assert (status, output) == (2, "")
    assert "it holds no manifest.json" in said(errors)[0]


def test_no_estimate_says_why(monkeypatch):
    autoencoder = compose(["model=mae_r256", "data=imagenet256_latents"])
    line = Sweep("h200", 0.1)._cost([PlannedRun(SweepRun("mae", 0, None), autoencoder)])
    assert re.match(r"no estimate of its cost: mae_r256.*", line)


# --- inputs, launchers and sweepers


def test_on_slurm_studies_keep_their_directories(tmp_path):
    plan = planned(multirun("launcher=slurm", "model=pmf_tiny", "seed=0,1"))
    assert [one.arm.run_dir for one in plan] == [None, None]  # it has the number of a job that is not there yet
    (one,) = planned(multirun("launcher=slurm", "experiment=pmf_table2", "seed=3"))
    assert str(one.arm.run_dir) == "runs/pmf_table2/small/x-small-seed3"
    assert one.arm.arm == "x-small"


def test_inputs_that_several_need_are_looked_for_once(monkeypatch):
    looked = []
    monkeypatch.setattr("pmf_lightning.sweeps.preflight._check", lambda cfg, module: looked.append(cfg))
    inputs = Preflight()
    for more in ([], ["optimizer=adam"], ["data.resolution=64"]):
        assert inputs.refusal(compose(["model=pmf_digits", *more])) is None
    assert len(looked) == 2


def test_a_refused_run_does_not_speak_for_the_others():
    inputs = Preflight()
    for bad in ("backbone.patch=5", "schedule.warmup_fraction=7", "sampling.ema=nowhere"):
        assert bad in inputs.refusal(compose(["model=pmf_tiny", "metrics=none", bad]))
    assert inputs.refusal(compose(["model=pmf_tiny", "metrics=none"])) is None


def test_no_cost_of_data_that_are_not_there():
    (one,) = planned(multirun("model=pmf_tiny", "data=shards"))
    assert re.match(r"no estimate of its cost: .*data\.root", Sweep("h200", 0.1)._cost([one]))


ESCAPED = [r"run_dir=out/$\{seed\}", r"cache_dir=/tmp/my\ cache", r"trainer.max_time=00\:00\:00\:02"]
TYPED = ['run_dir="out/${seed}"', 'cache_dir="/tmp/my cache"', 'trainer.max_time="00:00:00:02"']


def test_a_run_in_a_process_of_its_own_is_a_single_one(monkeypatch, tmp_path):
    said = OmegaConf.create({"overrides": {"task": ["launcher=joblib", "sweeper=optuna", "seed=3", *ESCAPED]}})
    called = []

    def begin(arguments):
        called.extend(arguments)
        finish(tmp_path, fd=2.5)
        return subprocess.Popen([sys.executable, "-S", "-c", ""])

    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: said)
    monkeypatch.setattr(subprocess_run, "subprocess", SimpleNamespace(Popen=begin))
    monkeypatch.setenv(RUN_DIR, "of the job before")
    request = RunRequest(tmp_path, None, tmp_path, 1, {})
    assert subprocess_run.train_in_subprocess(request)["fd"] == 2.5
    assert called == [sys.executable, "-m", "pmf_lightning.train", "seed=3", *TYPED]
    assert os.environ[RUN_DIR] == str(tmp_path)


def test_the_overrides_of_a_run_are_what_a_single_run_takes():
    (one,) = planned(multirun("launcher=joblib", "sweeper=optuna", "model=pmf_tiny", "seed=3"))
    assert one.arm.overrides == ["model=pmf_tiny", "seed=3"]


def test_the_overrides_of_a_run_give_the_same_run_again():
    for one in planned(multirun("model=pmf_tiny", "run_dir=out/${seed}", *ESCAPED[1:], "seed=3,4")):
        assert one.arm.overrides[1:4] == TYPED
        again = compose(readable(one.arm.overrides, "train"))
        assert (again.run_dir, again.cache_dir) == (f"out/{one.arm.seed}", "/tmp/my cache")
        assert (again.trainer.max_time, again.seed) == ("00:00:00:02", one.arm.seed)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["data=shards"], "set data.root"),
        (["data=folder", "data.root=nowhere", "data.resolution=32", "data.channels=1", "data.classes=2"], "nowhere"),
        (["metrics=fid"], "metrics.reference"),
        (["perceptual=lpips", "features.lpips.weights=nowhere.pth"], "nowhere.pth"),
        (["perceptual=classifier", "objective.perceptual.classifier=1"], None),
        ([], None),
    ],
)
def test_what_is_missing(more, words):
    reason = Preflight().refusal(compose(["model=pmf_digits", *more]))
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("chosen", "module", "extra"),
    [
        ("launcher=joblib", "hydra_joblib_launcher", "joblib"),
        ("sweeper=optuna", "hydra_optuna_sweeper", "optuna"),
    ],
)
def test_plugins_that_are_missing_name_their_extra(monkeypatch, call_command, chosen, module, extra):
    monkeypatch.setitem(sys.modules, f"hydra_plugins.{module}", None)
    status, _, errors = call_command(main, "-m", chosen, "seed=0,1")
    assert status == 2
    assert said(errors) == [f"error: {chosen}: it needs a plugin of Hydra; pip install 'pmf_lightning[{extra}]'"]
    assert "add -m" in call_command(main, chosen)[2]


def test_torchrun_takes_no_sweeps(monkeypatch, call_command):
    words = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (words | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    status, _, errors = call_command(main, "-m", "seed=0,1")
    assert status == 2
    assert "leave torchrun out" in said(errors)[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--cfg", "job"], "--cfg: Hydra shows the configuration of one run; leave -m out"),
        (["hydra.launcher.n_jobs=2"], "Could not override 'hydra.launcher.n_jobs'"),  # launcher=joblib was left out
    ],
)
def test_what_hydra_itself_refuses_is_one_line(call_command, more, words):
    status, _, errors = call_command(main, "-m", *more, "seed=0,1")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert words in said(errors)[0]


@pytest.mark.slow
def test_joblib_trains_two_at_a_time(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    asked = ["launcher=joblib", *TINY, *NAMED, "schedule.warmup_fraction=0,7,0.5"]
    done = train_elsewhere(tmp_path, *asked)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "sweep of 3 runs: 2 finished, 1 failed, 0 left" in done.stdout
    assert [one["state"] for one in sweep_file.read(tmp_path / "runs/mine")["arms"]] == [
        "finished",
        "failed",
        "finished",
    ]
    assert not list((tmp_path / "runs/mine").glob(".jobs*"))


@pytest.mark.slow
def test_optuna_finds_the_best_run(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    study = ["experiment=pmf_table2", "study.measure=images_per_second"]  # digits need no classifier then
    tiny = [override for override in TINY if not override.startswith("model=")]
    done = train_elsewhere(tmp_path, "sweeper=optuna", "hydra.sweeper.n_trials=2", *study, *tiny)
    assert done.returncode == 0, done.stderr[-3000:]
    best = OmegaConf.load(tmp_path / "runs/multirun/optimization_results.yaml")
    (file,) = (tmp_path / "runs" / "multirun").glob("*/sweep.json")
    folders = [file.parent / one["run_dir"] for one in sweep_file.read(file.parent)["arms"]]
    assert {folder.resolve().parent for folder in folders} == {tmp_path / "runs/pmf_table2/small"}
    speeds = [json.loads((folder / "summary.json").read_text())["images_per_second"] for folder in folders]
    assert best.best_value == min(speeds)


def train_elsewhere(folder, *asked):
    return python("-m", "pmf_lightning.train", "-m", *asked, cwd=folder)
