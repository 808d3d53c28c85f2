"""A resumed run is the same run: what would make another one of it is refused by name, and nothing is touched."""

import json
import shutil

import pytest
import torch
from matching import GATED
from omegaconf import OmegaConf
from shrunk import RUN

from pmf_lightning import UserError, build, compose
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.migrate import migrate_config
from pmf_lightning.train import main, train
from pmf_lightning.training import resume, run_dir
from pmf_lightning.training.prepare import run_request
from pmf_lightning.training.same_run import compare
from pmf_lightning.training.trainer import SessionTimer
from pmf_lightning.utils.errors import NotResumed

STEPS = ["sample_grid.enabled=false", "steps=4"]


def requested(*overrides):
    return run_request(compose([*RUN, *STEPS, *overrides]))


def plain(*overrides):
    return dict(requested(*overrides).config)


def save(path, config, step=2, **changes):
    """A checkpoint with as little in it as a resume needs to know."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"optimizer_states": [{}], "lr_schedulers": [{}], "loops": {"fit_loop": {}}}
    torch.save({"config": config, "state_dict": {}, "ema": {}, "global_step": step, **state, **changes}, path)


def stored(tmp_path, *overrides, **changes):
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", plain(*overrides), **changes)
    return tmp_path / "run"


def start(folder, *overrides, ckpt="last"):
    request = requested(f"ckpt={ckpt}", f"run_dir={folder}", *overrides)
    return resume.find(request, run_dir.known(request))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.prediction=u"], ["objective.prediction=u", "objective.prediction=x"]),
        (["seed=7"], ["seed=7", "seed=0"]),
        (["seed=7", "batch=32", "images=64"], ["seed=7 batch=32", "seed=0 batch=16"]),
        (["data=shapes", "data.resolution=16", "data.channels=1", "data.classes=10"], ["data=", "digits"]),
        (["data.held_out_images=100"], ["data.held_out_images=100", "data.held_out_images=360"]),
        (["flip=true"], ["flip=true", "flip=false"]),
        (["init_from=a"], ["init_from=a: ", "init_from=null"]),
        (["init_from=a", "init_skip=[trunk]"], ["init_skip=[trunk]", "init_skip=[]"]),
        (["backbone.depth=3"], ["backbone.depth=3"]),
        (["backbone.patch=16"], ["backbone.patch=16", "backbone.patch=8"]),
        (["backbone.heads={u: 2, v: 1}"], ["backbone.heads"]),
        (["backbone.bottleneck=null"], ["backbone.bottleneck=null"]),
        (["optimizer=adam"], ["optimizer", "MuonAdam"]),
        (["ema.halflife_kimg=[2,4]"], ["ema.halflife_kimg=[2,4]", "[1,2]"]),
        (["ema.rampup_ratio=null"], ["ema.rampup_ratio=null", "ema.rampup_ratio=0.05"]),
        (["objective.noise_scale=2"], ["objective.noise_scale=2"]),
        (["preconditioner=edm"], ["objective.preconditioner=", "objective.preconditioner=null"]),
        (["perceptual=classifier"], ["objective.perceptual"]),
        (["model=imf_digits"], ["model=imf_digits", "model=pmf_tiny"]),
        (["objective.label_dropout=0.2"], ["objective.label_dropout=0.2", "objective.label_dropout=0.1"]),
        (["objective.time_sampling=only_tied"], ["objective."]),
        (["conditions.label.tokens=3"], ["conditions.label.tokens=3: ", "has conditions.label.tokens="]),
    ],
    ids=" ".join,
)
def test_another_run_is_refused_by_name(tmp_path, overrides, words):
    with pytest.raises(NotResumed) as caught:
        start(stored(tmp_path), *overrides)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "start another run" in str(caught.value)


@pytest.mark.parametrize("ckpt", ["last", "auto", "file", "directory"])
def test_every_way_to_resume_compares_and_touches_nothing(tmp_path, ckpt):
    folder = stored(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    named = {"file": folder / "checkpoints" / "last.ckpt", "directory": folder}.get(ckpt, ckpt)
    with pytest.raises(NotResumed, match=r"objective\.prediction=u"):
        start(folder if ckpt in ("last", "auto") else tmp_path / "new", "objective.prediction=u", ckpt=named)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "no option changed"),
        (["optimizer.lr=0.5"], "optimizer.lr 0.001 -> 0.5"),
        (["steps=9"], "steps 4 -> 9"),
        (["log_every_steps=3", "num_workers=2", "micro_batch=4"], "micro_batch null -> 4"),
        (["schedule.decay_fraction=0.9"], "schedule.decay_fraction"),
        (["metrics=small"], " -> SmallDataSettings"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], "trainer.devices 1 -> 2"),
        (["trainer.precision=bf16-mixed"], "trainer.precision 32-true -> bf16-mixed"),
        (["ema.device=cpu"], "ema.device null -> cpu"),
        (["moments.device=cpu"], "moments.device null -> cpu"),
        (["compile=true", "activation_checkpointing=true"], "activation_checkpointing false -> true"),
        (["checkpoint.keep_last=3", "sample_grid.rows=2"], "checkpoint.keep_last 1 -> 3"),
        (["sampling.omega=3", "sampling.steps=2"], "sampling.omega 2.0 -> 3"),
        (["cache_dir=elsewhere", "logger=wandb"], "no option changed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_may_change_is_allowed_and_stated(tmp_path, overrides, said):
    found = start(stored(tmp_path), *overrides)
    assert (found.step, found.images) == (2, 32)
    assert said in found.line
    assert "\n" not in found.line


def test_a_derived_option_is_named_once(tmp_path):
    with pytest.raises(NotResumed, match=r"data\.resolution=16") as caught:
        start(stored(tmp_path), "data.resolution=16")
    assert "backbone.resolution" not in str(caught.value)


@pytest.mark.parametrize(
    "lacking",
    [
        ["flip"],
        ["moments"],
        ["compile", "activation_checkpointing"],
        ["objective.sample_interval"],
        ["decoder"],
        ["seed"],
    ],
)
def test_checkpoints_that_lack_newer_options_resume(tmp_path, lacking):
    config = plain()
    for key in lacking:
        part, _, name = key.rpartition(".")
        del (config[part] if part else config)[name]
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", config)
    line = start(tmp_path / "run").line
    assert ("not compared: seed (not set) -> 0" in line) == (lacking == ["seed"])


def test_an_older_checkpoint_was_trained_without_what_it_lacks(tmp_path):
    config = plain()
    del config["flip"], config["objective"]["sample_interval"]
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", config)
    for changed in ("flip=true", "objective.sample_interval=false"):
        with pytest.raises(NotResumed, match=changed):
            start(tmp_path / "run", changed)


@pytest.mark.parametrize(
    ("key", "had", "other"),
    [
        ("data.draw", "every_time", "once"),
        ("train_images", None, 16),
        ("init_skip", [], ["trunk"]),
        ("schedule.decay_shape", "linear", "cosine"),
        ("ema.device", None, "cpu"),
        ("trainer.max_time", None, "00:01:00:00"),
    ],
)
def test_an_option_that_is_newer_than_the_checkpoint_had_this_value(key, had, other):
    def config(value):
        part, _, name = key.rpartition(".")
        return {part: {name: value}} if part else {name: value}

    lacking = {key.partition(".")[0]: {}} if "." in key else {}
    same, changed = compare(lacking, config(had)), compare(lacking, config(other))
    assert (same.refused, same.allowed, same.unknown, changed.unknown) == ([], [], [], [])
    assert [(change.key, change.old, change.new) for change in (*changed.refused, *changed.allowed)] == [
        (key, had, other)
    ]


def test_options_that_do_not_exist_any_more_do_not_stop_a_resume(tmp_path):
    config = plain()
    config["ema"]["decay"] = 0.9999  # what +ema.decay= once wrote, and nothing read
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", config)
    assert "ema.decay 0.9999 -> (not set)" in start(tmp_path / "run").line


def test_two_spellings_of_one_path_are_one_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    one, two = ({"data": {"name": "folder", "root": root}} for root in ("photos", str(tmp_path / "link" / "")))
    assert compare(one, two).refused == []
    assert compare(one, {"data": {"name": "folder", "root": "others"}}).refused


def test_kinds_of_values_that_are_not_the_same():
    def refused(old, new):
        return bool(compare({"x": old}, {"x": new}).refused)

    assert not refused(1, 1.0)
    assert refused(1, True)
    assert refused(None, 0)
    assert refused([1, 2], [2, 1])
    assert not refused([1, 2], [1.0, 2.0])
    assert refused(None, {"_target_": "a.B"})
    assert not refused(None, {})
    assert not refused({}, None)
    assert refused({"_target_": "a.B", "n": 1}, {"_target_": "a.C", "n": 1})


def test_an_option_that_may_change_hides_no_other_of_its_name():
    def config(size):
        return {
            "metrics": {"batch": size},
            "features": {"batch": size},
            "data": {"side": size},
            "backbone": {"side": size},
        }

    found = compare(config(1), config(2))
    assert [change.key for change in found.allowed] == ["metrics.batch"]
    assert [change.key for change in found.refused] == [
        "features.batch",
        "data.side",
    ]  # backbone.side follows data.side


def test_weights_of_other_encoders_are_another_run():
    one, none, two = ({"posttrain": {"weights": weights}} for weights in ({"mae": 2}, {}, {"mae": 2, "clip": 1}))
    for old, new in ((none, one), (one, two), (two, one)):
        assert [change.key.rpartition(".")[0] for change in compare(old, new).refused] == ["posttrain.weights"]


def test_another_controller_is_another_run():
    """A controller of an earlier version states the options that differ from the defaults of its time."""
    earlier, full, none = (
        migrate_config({"objective": {"_target_": "a.B"}, "posttrain": {"controller": controller}})["posttrain"]
        for controller in ({}, {**GATED, "temperature": 9}, None)
    )
    assert earlier == {"controller": GATED}
    for old, new in ((earlier, full), (earlier, none), (none, earlier)):
        (change,) = compare({"posttrain": old}, {"posttrain": new}).refused
        assert change.key.startswith("posttrain.controller")


def test_real_images_of_the_loss_are_of_the_run_and_those_of_metrics_are_not():
    one, two = ({"battery": {"reference": reference}} for reference in ("data", "/stats/other"))
    found = compare(one, two)
    assert [change.key for change in found.allowed] == [change.key for change in found.with_effect]
    both = [{**config, "posttrain": {"encoders": ["mae"]}} for config in (one, two)]
    assert [change.key for change in compare(*both).refused] == ["battery.reference"]


def test_a_session_has_all_of_max_time():
    """Else a chain of batch jobs of one limit would stop at the step where the first job stopped."""
    timer = SessionTimer("00:00:01:00")
    timer.load_state_dict({"time_elapsed": {"train": 100.0, "validate": 0, "test": 0, "sanity_check": 0}})
    assert timer.time_remaining() == 60
    one, two = ({"trainer": {"max_time": limit}} for limit in ("00:00:01:00", None))
    assert not compare(one, two).with_effect


def test_another_attention_may_go_on_but_has_other_results():
    """In half precision fused and plain attention differ by more than the last bits."""
    found = compare(*({"backbone": {"attention": kind}} for kind in ("fused", "plain")))
    assert [change.key for change in found.with_effect] == ["backbone.attention"]
    assert not found.refused


def test_the_optimizer_has_the_settings_of_the_resumed_run_and_the_moments_of_the_stored_one():
    def module(*overrides):
        return build(compose([*RUN, *STEPS, "optimizer=adam", "schedule.decay_fraction=1", *overrides]))

    made, state = module().configure_optimizers(), {0: {"exp_avg": torch.ones(1)}}
    optimizer = {**made["optimizer"].state_dict(), "state": state}
    schedule = made["lr_scheduler"]["scheduler"].state_dict()
    checkpoint = {"state_dict": {}, "ema": {}, "global_step": 2}
    checkpoint |= {"optimizer_states": [optimizer], "lr_schedulers": [schedule]}
    resumed = module("optimizer.lr=0.5", "+optimizer.weight_decay=0.25", "optimizer.betas=[0.5,0.75]")
    resumed.on_load_checkpoint(checkpoint)
    wanted = {"initial_lr": 0.5, "lr": 0.5 * resumed._rate_factor(2), "weight_decay": 0.25, "betas": (0.5, 0.75)}
    assert wanted["lr"] < 0.5
    for group in optimizer["param_groups"]:
        assert {name: group[name] for name in wanted} == wanted
        assert all(isinstance(number, int) for number in group["params"])  # those of the checkpoint
    assert optimizer["state"] is state
    assert schedule["base_lrs"] == [0.5] * len(optimizer["param_groups"])


def test_weights_alone_are_no_training_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"holds weights, but not the state of training \(optimizer_states"):
        start(stored(tmp_path, optimizer_states=[]))
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", {"name": "something"})
    with pytest.raises(UserError, match="configuration cannot be read"):
        start(tmp_path / "run")


def test_images_seen_are_those_of_the_checkpoint(tmp_path):
    assert start(stored(tmp_path, images=500)).images == 500


def test_steps_and_images_are_integers(tmp_path):
    request, path = requested("ckpt=last", f"run_dir={tmp_path}"), tmp_path / "checkpoints" / "last.ckpt"
    for spoilt in ({"images": "x"}, {"images": 32.0}, {"step": 2.0}, {"step": True}):
        save(path, dict(request.config), **spoilt)
        with pytest.raises(UserError, match="its steps and images are not integers; no other checkpoint"):
            resume.find(request, tmp_path)


def test_a_checkpoint_that_another_process_has_replaced_is_read_again(tmp_path):
    """It may save between the first look and the lock of the directory."""
    request, path = requested("ckpt=last", f"run_dir={tmp_path}"), tmp_path / "checkpoints" / "last.ckpt"
    save(path, dict(request.config))
    first = resume.find(request, tmp_path)
    assert resume.find_again(first, request, tmp_path) is first
    save(path, dict(request.config), step=3)
    again = resume.find_again(first, request, tmp_path)
    assert (first.step, again.step, again.images) == (2, 3, 48)
    path.unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        resume.find_again(again, request, tmp_path)


def test_a_complete_run_is_named(tmp_path):
    folder = stored(tmp_path, step=4)
    assert start(folder).step == 4  # killed before its summary, which a session without steps writes
    (folder / "summary.json").write_text(json.dumps({"steps": 9, "stopped_early": False}))
    with pytest.raises(NotResumed, match=r"steps=4: .* has 4 already"):
        start(folder)  # an earlier checkpoint of a finished run
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "stopped_early": False}))
    with pytest.raises(NotResumed, match=r"steps=4: .* has 4 already"):
        start(folder)


@pytest.mark.parametrize("named", ["run", "run/", "run/checkpoints"])
def test_a_run_directory_is_resumed_in_place(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    stored(tmp_path)
    request = requested(f"ckpt={named}")
    assert run_dir.known(request).resolve() == tmp_path / "run"
    assert resume.find(request, run_dir.known(request)).step == 2
    new = requested(f"ckpt={named}", "run_dir=new")
    assert str(run_dir.known(new)) == "new"
    assert resume.find(new, run_dir.known(new)).step == 2
    assert not (tmp_path / "new").exists()


def test_a_run_directory_with_a_damaged_last_checkpoint(tmp_path, capsys):
    folder = stored(tmp_path)
    save(folder / "checkpoints" / "step-00000001.ckpt", plain(), step=1)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 cut short")
    request = requested(f"ckpt={folder}")
    assert resume.find(request, run_dir.known(request)).step == 1
    assert "the newest that is complete" in capsys.readouterr().out


def test_folders_that_are_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "holds no checkpoints/last.ckpt"), ("nowhere", "no such file")):
        request = requested(f"ckpt={tmp_path / name}")
        with pytest.raises(UserError, match=words):
            resume.find(request, run_dir.known(request))


def test_the_directory_of_another_run_is_not_taken(tmp_path):
    folder = stored(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    request = requested(f"ckpt={folder}", f"run_dir={tmp_path / 'other'}")
    with pytest.raises(NotResumed, match="set another run_dir"):
        run_dir.choose(request)


@pytest.mark.slow
def test_a_finished_run_is_left_alone_by_the_same_configuration_alone(tmp_path):
    folder = stored(tmp_path, step=4)
    OmegaConf.save(OmegaConf.create(plain()), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "stopped_early": False}))

    def asked(*overrides):
        return resume.finished(requested("ckpt=auto", f"run_dir={folder}", *overrides))

    assert asked()["steps"] == 4
    assert asked("num_workers=2", "log_every_steps=3", "logger=wandb", "checkpoint.keep_last=2")["steps"] == 4
    for changed in ("optimizer.lr=0.5", "sampling.omega=1", "seed=1", "steps=3"):
        with pytest.raises(NotResumed, match=changed):
            asked(changed)
    assert asked("steps=9", "optimizer.lr=0.5") is None  # it is resumed
    with pytest.raises(NotResumed, match="seed=1"):
        asked("steps=9", "seed=1")


@pytest.mark.slow
def test_the_command_refuses_before_it_writes_and_resumes_with_what_may_change(call_command, tmp_path):
    tiny = [*RUN, "sample_grid.enabled=false"]
    folder = tmp_path / "run"
    train(compose([*tiny, "steps=2", f"run_dir={folder}"]))
    assert read_checkpoint(folder)["images"] == 32

    def contents():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents()
    for ckpt in ("last", "auto"):
        status, _, errors = call_command(
            main, *tiny, "steps=4", f"run_dir={folder}", f"ckpt={ckpt}", "objective.prediction=u", "batch=8"
        )
        assert status == 2
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "objective.prediction=u batch=8" in lines[0] or "batch=8 objective.prediction=u" in lines[0]
        assert contents() == before
    status, output, _ = call_command(main, *tiny, "steps=3", f"ckpt={folder}", "optimizer.lr=0.5")
    assert status == 0
    assert f"resumes {folder}/checkpoints/last.ckpt after 2 steps (32 images); changed: " in output
    assert "optimizer.lr 0.001 -> 0.5" in output
    rows = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [16, 32, 48]
    assert "lr: 0.5" in (folder / "config.yaml").read_text()
