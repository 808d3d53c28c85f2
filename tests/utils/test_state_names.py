"""Weights whose names hold wrappers, and averages that go by other names."""

import math
import shutil

import pytest
import torch
from shrunk import RUN
from test_resume import plain

from pmf_lightning import UserError, build, compose, load_checkpoint, load_official, official_weights
from pmf_lightning.config.compose import choices
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.averages import find_average
from pmf_lightning.pipeline.checkpoints import read_checkpoint
from pmf_lightning.pipeline.conversion import from_checkpoint
from pmf_lightning.pipeline.module import unwrap_checkpoint
from pmf_lightning.utils.state_names import WRAPPERS, unwrapped

FORMS = ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.module.{}", "_fsdp_wrapped_module.{}"]


@pytest.mark.parametrize("name", ["net.blocks.0.q.weight", "bias", "module_list.0.weight", "a.my_module.b"])
@pytest.mark.parametrize("form", [*FORMS, "{}"])
def test_wrappers_leave_no_trace(form, name):
    assert unwrapped({form.format(name): 1, 7: 2}) == {name: 1, 7: 2}


def test_wrappers_in_the_middle_and_doubled_names():
    assert unwrapped({"network._orig_mod.trunk.0._checkpoint_wrapped_module.q": 1}) == {"network.trunk.0.q": 1}
    assert unwrapped({"module": 1}) == {"module": 1}
    with pytest.raises(UserError, match=r"mine: a\.b occurs twice"):
        unwrapped({"module.a.b": 1, "a.b": 2}, "mine")


def test_no_network_of_ours_has_such_a_name():
    for model in ("pmf_b16", "jit_b16", "drifting_b16", "mae_tiny", "imf_b2"):
        data = (
            ["data=imagenet256_latents"] if model == "imf_b2" else [] if model == "mae_tiny" else ["data=imagenet256"]
        )
        assert model in choices("model")
        network = build(compose([f"model={model}", *data, "metrics=none"]), empty=True).network
        assert not {part for name in network.state_dict() for part in name.split(".")} & WRAPPERS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with two averages; the weights of the second are all one."""
    module = build(compose([*RUN, "ema.halflife_kimg=[1,1200.25]", "sampling.ema=1200k"]))
    weights = dict(module.network.named_parameters())
    ema = {
        "1k": {k: v.detach() + 0 for k, v in weights.items()},
        "1200k": {k: v.detach() * 0 + 1 for k, v in weights.items()},
    }
    path = tmp_path_factory.mktemp("averages") / "own.ckpt"
    torch.save({"config": module.config, "state_dict": module.state_dict(), "ema": ema, "global_step": 1}, path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_with_wrapped_names_load(checkpoint, tmp_path, form):
    stored = read_checkpoint(checkpoint)
    stored["state_dict"] = {form.format(name): value for name, value in stored["state_dict"].items()}
    stored["ema"] = {k: {form.format(n): v for n, v in values.items()} for k, values in stored["ema"].items()}
    torch.save(stored, tmp_path / "wrapped.ckpt")
    for ema in ("raw", "1k", None):
        one, other = (
            load_checkpoint(path, ema).network.state_dict() for path in (checkpoint, tmp_path / "wrapped.ckpt")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    again = unwrap_checkpoint(stored, "it")  # as a resume does
    assert again["state_dict"].keys() == read_checkpoint(checkpoint)["state_dict"].keys()
    assert all(not name.startswith(("module", "_")) for name in again["ema"]["1k"])


def test_a_compiled_network_that_was_saved_inside_a_module(checkpoint, tmp_path):
    stored = read_checkpoint(checkpoint)
    stored["state_dict"] = {k.replace("network.", "network._orig_mod.", 1): v for k, v in stored["state_dict"].items()}
    torch.save(stored, tmp_path / "compiled.ckpt")
    assert load_checkpoint(tmp_path / "compiled.ckpt", "raw").average == "raw"


@pytest.mark.parametrize("form", [*FORMS, "net.module.{}", "module.net._orig_mod.{}"])
def test_official_weights_with_wrapped_names_load(form):
    shape = ["backbone.width=32", "backbone.num_heads=2", "backbone.mlp_dim=48", "backbone.depth=1"]
    shape += ["backbone.heads={u: 1, v: 1}", "metrics=none", "perceptual=none"]
    one, two = (
        build(compose(["model=pmf_b16", "data=imagenet256", *shape, f"seed={seed}"])).network for seed in (0, 1)
    )
    weights = {form.format(name): value for name, value in official_weights(one, prefix="").items()}
    load_official(weights, two)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_folders_of_weights_with_wrapped_names_load(checkpoint, tmp_path):
    stored = from_checkpoint(checkpoint, "1k")
    wrapped = {f"module.{name}": value for name, value in stored.network.items()}
    weights_folder.write(tmp_path / "w", weights_folder.StoredWeights(wrapped, {}, stored.about))
    assert weights_folder.read(tmp_path / "w").network.keys() == stored.network.keys()
    assert load_checkpoint(tmp_path / "w", "1000").average == "1k"
    shutil.rmtree(tmp_path / "w")


CONFIG = {"batch": 1024, "ema": {"halflife_kimg": [500, 1000, 2000, -1.024 * math.log(2) / math.log(0.9999)]}}
NAMES = ["500k", "1000k", "2000k", "7097k", "raw"]


@pytest.mark.parametrize(
    ("requested", "name"),
    [
        ("500k", "500k"),
        ("raw", "raw"),
        (0.9999, "7097k"),
        ("0.9999", "7097k"),
        (".9999", "7097k"),
        (0.9986, "500k"),
        ("0.99929", "1000k"),
        (0.9996, "2000k"),
        ("0.999645", "2000k"),
        ("500K", "500k"),
        ("500kimg", "500k"),
        ("0.5M", "500k"),
        (500000, "500k"),
        ("2m", "2000k"),
        ("7.1M", "7097k"),
        ("7097.0k", None),
        ("7097.5k", "7097k"),
    ],
)
def test_averages_by_decay_and_half_life(requested, name):
    if name is None:
        with pytest.raises(UserError, match="no such average"):
            find_average(requested, NAMES, CONFIG)
    else:
        assert find_average(requested, NAMES, CONFIG) == name


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        (0.99, ["no such average", "500k (0.99858)", "7097k (0.9999"]),
        ("0.999", ["several such averages", "500k", "1000k"]),
        ("3000k", ["no such average", "did you mean"]),
        ("0", ["no such average"]),
        (1.0, ["no such average"]),
        ("-0.9", ["no such average"]),
        ("", ["no such average"]),
    ],
)
def test_averages_that_do_not_exist(requested, words):
    with pytest.raises(UserError) as caught:
        find_average(requested, NAMES, CONFIG)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_checkpoint_is_read_by_decay(checkpoint):
    decay = round(0.5 ** (16 / 1200250), 7)
    module = load_checkpoint(checkpoint, decay)
    assert module.average == "1200k"
    assert all((value == 1).all() for value in module.network.parameters())
    assert from_checkpoint(checkpoint, decay).about.weights == "1200k"


def test_the_training_command_names_averages_by_half_life():
    with pytest.raises(UserError, match=r"sampling.ema=0\.9999: there is no such average; .*1k"):
        build(compose([*RUN, "sampling.ema=0.9999"]))
    assert plain()["sampling"]["ema"] == "2k"
