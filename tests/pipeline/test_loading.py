"""``load``: one function for every place and format of a model; it gives the same images or says what it recognised."""

import json
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from flax_files import nested, write
from safetensors.torch import save_file
from stored import checkpoint, write_checkpoint, write_folder

from pmf_lightning import UserError, build, compose, load, load_checkpoint, official_weights, sample_images
from pmf_lightning.pipeline import loading
from pmf_lightning.sample import sample
from pmf_lightning.weights.drifting import generator_arrays

PMF = ["model=pmf_tiny", "data=digits"]
WIDE = "trunk.0.mlp.w1.weight"  # not square


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One model as a run directory, a checkpoint, a weights folder, released files and a folder of diffusers."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    write_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    write_folder(folder / "weights")
    weights = official_weights(load_checkpoint(folder / "weights").network)
    torch.save(weights, folder / "release.pth")
    torch.save({"model": {name.removeprefix("net."): value for name, value in weights.items()}}, folder / "fd.pth")
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "release.safetensors")
    (folder / "pipeline").mkdir()
    write_folder(folder / "pipeline" / "network")
    (folder / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": ["p", "PMFLightningPipeline"]}))
    return folder


@pytest.fixture(scope="module")
def expected(places):
    return sample_images(load_checkpoint(places / "weights"), [3, 7], omega=2.0)


@pytest.mark.parametrize("name", ["run", "run/checkpoints/last.ckpt", "weights", "pipeline"])
def test_what_has_a_configuration(name, places, expected):
    module = load(places / name)
    assert not module.training
    assert torch.equal(sample_images(module, [3, 7], omega=2.0), expected)


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_weights_in_half_precision_are_widened(kind, tmp_path):
    kept = checkpoint()
    kept["state_dict"] = halves = {name: value.bfloat16() for name, value in kept["state_dict"].items()}
    if kind == "folder":
        bare = {name.removeprefix("network."): value for name, value in halves.items()}
        save_file(bare, write_folder(tmp_path / "half") / "model.safetensors")
        module = load_checkpoint(tmp_path / "half")
    else:
        torch.save(kept, tmp_path / "half.ckpt")
        module = load_checkpoint(tmp_path / "half.ckpt", "raw")
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[name].float())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda average: average.update({WIDE: average[WIDE].T}),
        lambda average: average.update(foreign=torch.zeros(2)),
        lambda average: average.pop(WIDE),
    ],
    ids=["transposed", "foreign", "missing"],
)
def test_an_average_of_another_network_is_named(spoil, tmp_path):
    kept = checkpoint()
    spoil(kept["ema"].setdefault("7k", dict(next(iter(kept["ema"].values())))))
    torch.save(kept, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt: its average 7k is not one of this network; "):
        load_checkpoint(tmp_path / "last.ckpt")


def test_whoever_may_read_the_description_may_read_the_weights(places):
    config, weights = ((places / "weights" / name).stat().st_mode for name in ("config.json", "model.safetensors"))
    assert weights == config


@pytest.mark.parametrize("name", ["release.pth", "fd.pth", "release.safetensors"])
def test_released_files_of_pytorch(name, places, expected, composed_pmf):
    module = loading.load_configured(places / name, None, (), composed_pmf)
    assert module.config["name"] == "pmf_tiny"
    assert torch.equal(sample_images(module, [3, 7], omega=2.0), expected)


@pytest.fixture(scope="module")
def composed_pmf():
    return compose([*PMF, "in=.", "out=."], "convert")


def test_sample_takes_a_release_and_its_model(places, tmp_path):
    paths = [
        sample(compose([*more, "n=2", "classes=[3,7]", "omega=2", f"out={tmp_path / name}"], "sample"))["images"]
        for name, more in {"a": [f"ckpt={places / 'release.pth'}", *PMF], "b": [f"ckpt={places / 'weights'}"]}.items()
    ]
    ours, theirs = (np.load(path)["arr_0"] for path in paths)
    assert np.array_equal(ours, theirs)


def test_driftings_msgpack(tmp_path):
    small = ["backbone.width=32", "backbone.num_heads=2", "backbone.mlp_dim=48", "backbone.depth=1"]
    cfg = compose(["model=drifting_b16", "drift_features=raw", "data=digits", "backbone.patch=8", *small])
    module = build(cfg).eval()
    write(tmp_path / "ema_params.msgpack", nested({k: v.numpy() for k, v in generator_arrays(module.network).items()}))
    cfg.name = "drifting_b16"
    loaded = loading.load_configured(tmp_path / "ema_params.msgpack", None, (), cfg)
    assert torch.equal(sample_images(loaded, [1]), sample_images(module, [1]))


def test_an_id_of_the_hub_is_a_folder_that_is_fetched(places, expected, monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, revision, allow_patterns):
        asked.append((repository, revision))
        assert not {"*", "*.py", "*.pt", "*.bin"} & set(allow_patterns)
        return str(places / "weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert torch.equal(sample_images(load("someone/digits@v1"), [3, 7], omega=2.0), expected)
    assert asked == [("someone/digits", "v1")]
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="ckpt=runs/mistyped: no such file"):
        load("runs/mistyped")  # a folder of this name is here, so it is no id
    assert len(asked) == 1


def _offline(*_, **__):
    raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand a second line")


BAD = {
    "no.network/model": r"ckpt=no.network/model: no such file or folder here, and .*\(LocalEntryNotFoundError\).*"
    "hf download no.network/model --local-dir FOLDER, then give that folder",
    "other.pth": "ckpt=.*recognised as official weights; these are not official weights of pMF, iMF or JiT",
    "code.pth": "code.pth cannot be read as weights: it contains .*whose code would run",
    "theirs": r"recognised as a diffusers pipeline \(DDPMPipeline\), but not one that pmf_lightning.convert wrote",
    "weights/model.safetensors": "it is part of the folder .*give that folder",
    "broken.safetensors": "cannot be read as safetensors",
    "broken.msgpack": "ckpt=.*broken.msgpack: cannot be read as a .msgpack of flax",
}


class Foreign:
    """A class that a file must not build."""


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_are_named_in_one_line(name, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _offline)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"net": Foreign()}, tmp_path / "code.pth")
    write_folder(tmp_path / "weights")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    for broken in ("broken.safetensors", "broken.msgpack"):
        (tmp_path / broken).write_text("text")
    with pytest.raises(UserError, match=BAD[name]) as refusal:
        load(name)
    assert "\n" not in str(refusal.value)


def test_a_source_with_a_configuration_refuses_model_and_data(places):
    with pytest.raises(UserError, match=r"model=pmf_tiny: .*weights has its own configuration; leave model out"):
        load(places / "weights", model="pmf_tiny")
    with pytest.raises(UserError, match=r"data=digits: .*run has its own configuration; leave data out"):
        load(places / "run", data="digits")
    with pytest.raises(UserError, match="no such file"):
        load(places / "mistyped", data="digits")


def test_without_the_hub_s_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"no such file or folder here; as an id .*pip install 'pmf_lightning\[hub\]'"):
        load("someone/digits")
