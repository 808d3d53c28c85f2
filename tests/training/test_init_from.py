"""``init_from=``: a new run starts from stored weights, exactly, or is refused in one line before work starts."""

import hashlib
import json
import shutil

import pytest
import torch
from composed_once import settings_of
from flax_files import nested, write
from lightning import Trainer
from shrunk import BACKBONE, RUN

from pmf_lightning import UserError, build, compose, load_checkpoint, sample_images
from pmf_lightning.commands.train import from_last_run
from pmf_lightning.convert import convert
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.train import main, train
from pmf_lightning.training import initial_weights
from pmf_lightning.training.callbacks.ema import EMA
from pmf_lightning.training.prepare import init_request, open_source, prepare
from pmf_lightning.utils import rng
from pmf_lightning.utils.errors import NotResumed
from pmf_lightning.weights import official_weights
from pmf_lightning.weights.drifting import generator_arrays

SHORT = (*RUN, "sample_grid.enabled=false", "steps=2")
JIT = ("model=jit_b16", "backbone.patch=8", "backbone.context=4", "backbone.context_start=0")
JIT += ("data=digits", *BACKBONE[:4], BACKBONE[5])
DRIFTING = ("model=drifting_b16", "drift_features=raw", "backbone.patch=8", "backbone.context=3")
DRIFTING += ("data=digits", *BACKBONE[:4], "objective.style_codes=3", "batch=128")


def settings(*overrides, of=SHORT):
    return settings_of(of, *overrides)


def started(*overrides, of=SHORT):
    """The module of a run before its first step, and the lines that are printed about its weights."""
    cfg = settings("seed=5", *overrides, of=of)
    module = build(cfg)
    return module, initial_weights.load(init_request(cfg), module)


def images(module):
    return sample_images(module.eval(), [3, 7], seed=1)


def same_weights(module, other):
    state = other.network.state_dict()
    return all(torch.equal(value, state[name]) for name, value in module.network.state_dict().items())


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run directory; weights and averages are random and differ, so that their images do."""
    folder = tmp_path_factory.mktemp("old") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    module, sets = build(settings()), {}
    for name in ("raw", "1k", "2k"):
        shapes = module.network.state_dict().items()
        sets[name] = {key: 0.1 * torch.randn(value.shape, generator=rng.generator(name, key)) for key, value in shapes}
    raw = {f"network.{name}": value for name, value in sets.pop("raw").items()}
    torch.save({"state_dict": raw, "ema": sets, "config": module.config}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def converted(old):
    """The folder of ``old``, with its average as a folder of weights and as an official file."""
    for name in ("folder", "file.pt"):
        convert(compose([f"in={old}", f"out={old.parent / name}"], "convert"))
    return old.parent


@pytest.mark.parametrize("source", ["run", "run/checkpoints/last.ckpt", "folder", "file.pt"])
def test_step_0_draws_the_images_of_the_old_weights(old, converted, source):
    cfg = settings("seed=5", f"init_from={converted / source}")
    parts = prepare(cfg, open_source(cfg))
    wanted = load_checkpoint(old)
    assert torch.equal(images(parts.module), images(wanted))
    assert same_weights(parts.module, wanted)
    file = {"run": "run/checkpoints/last.ckpt", "folder": "folder/model.safetensors"}.get(source, source)
    digest = hashlib.sha256((converted / file).read_bytes()).hexdigest()
    name = "official" if source == "file.pt" else "2k"
    assert parts.module.init_from == {
        **{"path": str(converted / source), "file": file.rpartition("/")[2], "sha256": digest, "weights": name},
        **{"not_trained": [], "from_seed": []},
    }
    assert list(parts.init_lines) == [f"starts from {converted / source}, weights {name}"]


def test_init_ema_picks_the_average_and_averages_start_from_it(old):
    module, lines = started(f"init_from={old}", "init_ema=raw")
    assert same_weights(module, load_checkpoint(old, "raw"))
    assert not torch.equal(images(module), images(load_checkpoint(old)))
    assert lines[0].endswith("weights raw")
    averages = EMA([1, 2], 0.05, 16)
    averages.on_fit_start(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), module)
    for name, value in module.network.named_parameters():
        assert torch.equal(averages.averages["1k"][name], value)


def test_a_resumed_run_does_not_read_init_from():
    cfg = settings("init_from=missing")
    parts = prepare(cfg, open_source(cfg), resumed=True)
    assert same_weights(parts.module, build(settings()))
    assert not parts.init_lines


@pytest.mark.parametrize("source", ["run", "file.pt"])
def test_a_head_that_is_not_trained_is_left_out_and_stated(old, converted, source):
    module, lines = started(f"init_from={converted / source}", "objective.v_source=boundary")
    assert torch.equal(images(module), images(load_checkpoint(old)))
    assert module.init_from["not_trained"] == ["v"]
    assert lines[1] == "not loaded, because this run does not train it: head v"
    differs = "options that differ from those of the stored run: objective.v_source head -> boundary"
    assert lines[2:] == ([differs] if source == "run" else [])


@pytest.mark.parametrize("source", ["run", "folder", "file.pt"])
def test_init_skip_allows_other_classes(old, converted, source):
    fresh = build(settings("seed=5", "data.classes=11")).network.state_dict()
    stored = load_checkpoint(old).network.state_dict()
    skip = "init_skip=[conditions.label.table]"
    module, lines = started("data.classes=11", f"init_from={converted / source}", skip)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith("conditions.label.table.") else stored)[name]), name
    assert lines[1] == "not loaded, but initialised from the seed: conditions.label.table"


@pytest.mark.parametrize("source", ["run", "file.pt"])
def test_init_skip_allows_another_resolution_of_as_many_patches(old, converted, source):
    larger = ["data.resolution=64", "backbone.patch=16", f"init_from={converted / source}"]
    module, _ = started(*larger, "init_skip=[patch_embedding.patches,heads.u.out,heads.v.out]")
    assert torch.equal(module.network.positions.weight, load_checkpoint(old).network.positions.weight)
    with pytest.raises(UserError, match=r"^init_from="):
        started(*larger)


REFUSED = {
    "missing path": (["init_from=nowhere"], r"^init_from=nowhere: no such file"),
    "no run": (["init_from={0}"], r"^init_from=.*: this folder holds no checkpoints/last\.ckpt"),
    "shape": (
        ["init_from={0}/run", "backbone.mlp_dim=64"],
        r"^init_from=.*/run: its weights do not fit model=pmf_tiny \(of another shape: \S+ \[48, 32\] instead of",
    ),
    "classes": (
        ["data.classes=11", "init_from={0}/run"],
        r"table.weight \[11, 32\] instead of \[12, 32\]\); .* init_skip=\[conditions.label.table\]$",
    ),
    "missing head": (
        ["init_from={0}/u.pt"],
        r"\(missing: heads\.v\..* and \d+ more\); .*, init_skip=\[heads\.v\]$",
    ),
    "foreign": (["init_from={0}/run", "backbone.bottleneck=null"], r"foreign: patch_embedding\.expand"),
    "depth": (["init_from={0}/run", "backbone.depth=2"], r"missing: trunk\.1\..*init_skip=\[trunk\.1\]$"),
    "patches": (["init_from={0}/run", "backbone.patch=16"], r"its images have 4 x 4 patches, those of .* have 2 x 2"),
    "official size": (["init_from={0}/file.pt", "backbone.depth=2"], r"^init_from=.*/file\.pt: this file looks like"),
    "average": (["init_from={0}/run", "init_ema=3k"], r"^init_ema=3k: .* did you mean .*k"),
    "average of a folder": (["init_from={0}/folder", "init_ema=raw"], r"^init_ema=raw: .* leave init_ema out"),
    "average of a file": (["init_from={0}/file.pt", "init_ema=raw"], r"^init_ema=raw: .* leave init_ema out"),
    "skip": (
        ["init_from={0}/run", "init_skip=[condition.label]"],
        r"^init_skip=\[condition\.label\]: no weight has this name or prefix; did you mean .*conditions\.label",
    ),
    "part of a word": (["init_from={0}/run", "init_skip=[trun]"], r"^init_skip=\[trun\]: .* did you mean trunk"),
    "no source": (["init_skip=[trunk]"], r"^init_skip=trunk: it is an option of init_from="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_change_nothing(converted, case):
    overrides, message = REFUSED[case]
    if case == "missing head":
        network = load_checkpoint(converted / "run").network
        torch.save(official_weights(network, inference=True), converted / "u.pt")
    cfg = settings(*(text.replace("{0}", str(converted)) for text in overrides))
    module, fresh = build(cfg), build(cfg)
    with pytest.raises(UserError, match=message) as caught:
        initial_weights.load(init_request(cfg), module)
    assert "\n" not in str(caught.value)
    assert "ckpt=" not in str(caught.value)
    assert same_weights(module, fresh)


def test_last_is_the_newest_run_but_never_one_of_this_command(old, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = settings("init_from=last")
    with pytest.raises(UserError, match=r"^init_from=last: no run with a checkpoint under "):
        from_last_run(cfg)
    shutil.copytree(old, "runs/mine/first")
    assert from_last_run(cfg).init_from == "runs/mine/first"
    assert capsys.readouterr().out == "init_from=last: runs/mine/first\n"
    with pytest.raises(UserError, match=r"^init_from=last: with ckpt=auto the newest run may be one of this command"):
        from_last_run(settings("init_from=last", "ckpt=auto"))
    monkeypatch.setattr("pmf_lightning.commands.train.in_multirun", lambda: True)
    with pytest.raises(UserError, match="in a sweep the newest run"):
        from_last_run(cfg)


@pytest.mark.slow
def test_a_refused_run_leaves_nothing(call_command, tmp_path, old):
    status, _, stderr = call_command(main, *SHORT, "run_dir=new", f"init_from={old}", "backbone.mlp_dim=64")
    assert status == 2
    assert stderr.startswith("error: init_from=")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_configuration_that_names_foreign_code_is_refused(old, tmp_path):
    checkpoint = read_checkpoint(old)
    checkpoint["config"]["objective"]["_target_"] = "my_flow.Flow"
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"^init_from=.*: it would run code outside .* add trust=\[my_flow\]"):
        started(f"init_from={tmp_path / 'foreign.ckpt'}")


def test_files_of_fd_loss_with_trained_positions(tmp_path):
    made = build(settings("backbone.positions=learned", "seed=3", of=JIT))
    with torch.no_grad():
        made.network.positions.weight += 0.1 * torch.linspace(-1, 1, 32)
        made.network.heads.u.out.weight += 0.01
    given = f"init_from={tmp_path / 'jit.pth'}"
    torch.save({"model": official_weights(made.network), "step": 7}, tmp_path / "jit.pth")
    module, _ = started(given, "backbone.positions=learned", of=JIT)
    assert same_weights(module, made)
    assert module.init_from["weights"] == "model"
    with pytest.raises(UserError, match=r"^init_ema=model_ema1: .* hold model: choose one of them"):
        started(given, "init_ema=model_ema1", of=JIT)
    with pytest.raises(UserError, match=r"position table was trained.*add backbone\.positions=learned$"):
        started(given, of=JIT)


def test_released_files_of_drifting(tmp_path):
    made, given = build(settings("seed=3", of=DRIFTING)), f"init_from={tmp_path / 'ema_params.msgpack'}"
    write(tmp_path / "ema_params.msgpack", nested(generator_arrays(made.network)))
    module, _ = started(given, of=DRIFTING)
    assert same_weights(module, made)
    assert (module.init_from["weights"], module.init_from["file"]) == ("official", "ema_params.msgpack")
    with pytest.raises(UserError, match=r"^init_ema=raw: .* leave init_ema out"):
        started(given, "init_ema=raw", of=DRIFTING)
    with pytest.raises(UserError, match=r"^init_from=.*ema_params\.msgpack: "):
        started(given)


@pytest.mark.slow
def test_a_run_states_its_start_and_resumes_without_the_file(old, tmp_path, capsys):
    shutil.copytree(old, tmp_path / "old")
    command = [*SHORT, "seed=5", f"init_from={tmp_path / 'old'}", f"run_dir={tmp_path / 'new'}", "ckpt=auto"]
    train(compose(command))
    assert f"starts from {tmp_path / 'old'}, weights 2k" in capsys.readouterr().out
    digest = hashlib.sha256((old / "checkpoints" / "last.ckpt").read_bytes()).hexdigest()
    stated = json.loads((tmp_path / "new" / "run.json").read_text())["init_from"]
    assert (stated["sha256"], stated["file"], stated["weights"]) == (digest, "last.ckpt", "2k")
    shutil.rmtree(tmp_path / "old")
    assert train(compose(command))["steps"] == 2  # finished
    assert train(compose([*command, "steps=3"]))["steps"] == 3
    assert "starts from" not in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "run.json").read_text())["init_from"] == stated
    assert read_checkpoint(tmp_path / "new")["init_from"] == stated
    last = tmp_path / "new" / "checkpoints" / "last.ckpt"
    with pytest.raises(NotResumed, match=r"init_from=null: the run of .* has init_from="):
        train(compose([*SHORT, "seed=5", "steps=4", f"ckpt={last}", f"run_dir={tmp_path / 'third'}"]))
