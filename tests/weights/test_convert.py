"""Official files and checkpoints into folders to sample from, and back: bit for bit, whole, or refused."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from common import normal
from safetensors.torch import load_file, save_file
from shrunk import BACKBONE, RUN
from test_official_sizes import file

from pmf_lightning import UserError, build, compose, load_checkpoint, official_weights
from pmf_lightning.convert import convert
from pmf_lightning.convert import main as convert_main
from pmf_lightning.pipeline import weights_folder
from pmf_lightning.pipeline.conversion import from_official, official_dict, stored_of
from pmf_lightning.sample import sample
from pmf_lightning.train import train

# A small network of each family, as train would take it, and what the models are called in a file.
SMALL = {
    "pMF": ["model=pmf_tiny", "data=digits"],
    "iMF": ["model=imf_b16", "data=digits", *(change for change in BACKBONE if "bottleneck" not in change)],
}
V_LAYER = {
    f"net.v_final_layer.{end}" for end in ("norm.weight", "linear._flax_linear.weight", "linear._flax_linear.bias")
}


def small(family):
    """Names and values of a full official file."""
    network = build(compose(SMALL[family]), empty=True).network
    shapes = {name: value.shape for name, value in official_weights(network).items()}
    return {name: normal("convert", name, shape=tuple(shape), dtype=torch.float32) for name, shape in shapes.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(source, out, *changes):
    return convert(compose([f"in={source}", f"out={out}", *changes], "convert"))


@pytest.fixture(scope="module", params=SMALL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def full(family):
    return small(family)


@pytest.fixture(scope="module")
def released(full, family):
    cut = "net.v_heads." if family == "iMF" else "net.v_"
    return {name: value for name, value in full.items() if not name.startswith(cut)}


@pytest.fixture
def official(released, family, tmp_path):
    """A file as released; pMF's hold a complex buffer too."""
    buffers = {"net.rope_freqs": torch.zeros(16, 8, dtype=torch.complex64)} if family == "pMF" else {}
    torch.save(released | buffers, tmp_path / "official.pt")
    return tmp_path / "official.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*RUN, "steps=3", "optimizer.lr=0.1", f"run_dir={folder}"]))  # images that are not grey yet
    return folder


@pytest.fixture(scope="module")
def folder(trained):
    run(trained, trained.parent / "weights")
    return trained.parent / "weights"


def pictures(ckpt, out, *changes):
    paths = sample(compose([f"ckpt={ckpt}", f"out={out}", "n=6", "batch_size=6", *changes], "sample"))
    with np.load(paths["images"]) as arrays:
        return arrays["arr_0"]


def test_official_to_folder_and_back_is_bit_exact(official, released, family, tmp_path):
    run(official, tmp_path / "folder", *SMALL[family])
    about = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert {name: about[name] for name in ("format", "version", "family", "weights")} == {
        **{"format": "pmf_lightning weights", "version": 1, "family": family, "weights": "official"},
    }
    assert about["source"]["file"] == "official.pt"
    assert len(about["source"]["sha256"]) == 64
    assert list(about["config"]["backbone"]["heads"]) == ["u"]
    run(tmp_path / "folder", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert same(back, released)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in back.values())


def test_an_official_file_holds_no_more_than_its_weights(tmp_path):
    """Also where the weights are parts of larger memory, all of which torch.save would write."""
    module = build(compose(SMALL["pMF"]))
    whole = stored_of(module)
    cut = {name: value.expand(4, *value.shape).clone()[1] for name, value in whole.network.items()}
    weights = official_dict(replace(whole, network=cut), inference=False)
    assert same(weights, official_weights(module.network))
    torch.save(weights, tmp_path / "mine.pt")
    assert (tmp_path / "mine.pt").stat().st_size < 1.5 * sum(value.nbytes for value in weights.values())


def test_head_v_that_the_file_has_stays(full, family, tmp_path):
    torch.save(full, tmp_path / "full.pth")
    stored = run(tmp_path / "full.pth", tmp_path / "folder", *SMALL[family])
    assert list(stored.about.config["backbone"]["heads"]) == ["u", "v"]
    run(tmp_path / "folder", tmp_path / "back.pt")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), full)
    run(tmp_path / "folder", tmp_path / "back.pt", "inference=true", "force=true")
    lean = torch.load(tmp_path / "back.pt", weights_only=True)
    assert not any(name.startswith("net.v_heads") for name in lean)
    assert (lean.keys() & V_LAYER) == (V_LAYER if family == "iMF" else set())


@pytest.mark.slow
def test_the_dtype_of_the_file_stays(tmp_path):
    half = {name: value.bfloat16() for name, value in small("pMF").items()}
    torch.save(half, tmp_path / "half.pt")
    run(tmp_path / "half.pt", tmp_path / "folder", *SMALL["pMF"])
    run(tmp_path / "folder", tmp_path / "back.pt")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), half)
    network = load_checkpoint(tmp_path / "folder").network
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_a_loaded_folder_is_whole(official, released, family, tmp_path):
    """Every weight of the network comes from the file; what the file lacks is not there."""
    run(official, tmp_path / "folder", *SMALL[family])
    module = load_checkpoint(tmp_path / "folder")
    assert list(module.network.heads) == ["u"]
    assert not any(weight.is_meta for weight in module.network.parameters())
    loaded = {name: value.clone() for name, value in official_weights(module.network).items()}
    assert all(torch.equal(loaded[name], released[name]) for name in released.keys() - V_LAYER)
    assert not module.training
    with torch.no_grad():
        module.network.trunk[0].mlp.w1.weight.zero_()  # memory of its own: the folder stays as it is
    assert same(official_weights(load_checkpoint(tmp_path / "folder").network), loaded)


@pytest.mark.slow
def test_the_preset_is_found_by_its_shapes(tmp_path):
    torch.save(small("pMF"), tmp_path / "mine.pt")
    assert run(tmp_path / "mine.pt", tmp_path / "folder").about.config["name"] == "pmf_tiny"


@pytest.mark.parametrize(("name", "data"), [("pmf_b32", "imagenet512"), ("imf_m2", "imagenet256_latents")])
def test_released_models_are_found_with_their_data(name, data, tmp_path):
    (tmp_path / "empty.pt").touch()
    stored = from_official(file(name), tmp_path / "empty.pt", compose(["in=a", "out=b"], "convert"))
    assert stored.about.config["name"] == name
    assert stored.about.config["data"]["name"] == data
    assert stored.about.config["backbone"]["heads"] == {"u": 8}
    assert not any(name.startswith("heads.v") for name in stored.network)
    assert len(stored.aside) == (3 if name == "imf_m2" else 0)


def test_data_and_changes_may_be_given(tmp_path):
    changes = [*SMALL["pMF"], "data.channels=3", "backbone.depth=1", "sampling.omega=4.5"]
    network = build(compose(changes)).network
    torch.save(official_weights(network), tmp_path / "mine.pt")
    run(tmp_path / "mine.pt", tmp_path / "folder", *changes)
    module = load_checkpoint(tmp_path / "folder")
    assert same(module.network.state_dict(), network.state_dict())
    assert module.config["sampling"]["omega"] == 4.5


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, "raw"])
def test_samples_equal_those_of_the_checkpoint(trained, tmp_path, ema):
    change = [f"ema={ema}"] if ema else []
    stored = run(trained, tmp_path / "weights", *change)
    assert stored.about.weights == (ema or "2k")
    assert stored.about.source["file"] == "last.ckpt"
    expected = load_checkpoint(trained, ema)
    assert same(stored.network, expected.network.state_dict())
    reloaded = load_checkpoint(tmp_path / "weights", stored.about.weights)
    assert same(reloaded.network.state_dict(), stored.network)
    assert reloaded.objective == expected.objective
    images = pictures(trained, tmp_path / "a", *change)
    assert np.array_equal(pictures(tmp_path / "weights", tmp_path / "b"), images)
    assert len(np.unique(images)) > 10


def test_a_checkpoint_file_is_as_good_as_its_run(trained, tmp_path):
    stored = run(trained / "checkpoints" / "last.ckpt", tmp_path / "weights", "ema=1k")
    assert stored.about.config["sampling"]["ema"] == "1k"
    assert same(stored.network, load_checkpoint(trained, "1k").network.state_dict())


def test_averages_differ_or_the_test_above_says_nothing(trained):
    raw, average = (load_checkpoint(trained, ema).network.state_dict() for ema in ("raw", "1k"))
    assert not same(raw, average)


def test_a_checkpoint_becomes_an_official_file_at_once(trained, tmp_path):
    run(trained, tmp_path / "mine.pt", "ema=1k")
    expected = official_weights(load_checkpoint(trained, "1k").network)
    assert same(torch.load(tmp_path / "mine.pt", weights_only=True), expected)


def test_an_architecture_of_ones_own_has_a_folder_but_no_official_file(tmp_path):
    module = build(compose([*RUN, "backbone.bottleneck=null"]))
    weights = module.network.state_dict()
    state = {f"network.{name}": value for name, value in weights.items()}
    torch.save({"config": module.config, "state_dict": state, "ema": {"2k": weights}}, tmp_path / "own.ckpt")
    assert run(tmp_path / "own.ckpt", tmp_path / "weights").about.family is None
    assert same(load_checkpoint(tmp_path / "weights").network.state_dict(), weights)
    for source in ("own.ckpt", "weights"):
        with pytest.raises(UserError, match="no official weights have this architecture"):
            run(tmp_path / source, tmp_path / "mine.pt")
    assert not (tmp_path / "mine.pt").exists()


@pytest.mark.parametrize("out", ["weights", "mine.pt"])
def test_what_is_there_is_replaced_only_by_force_and_only_whole(folder, trained, tmp_path, out, monkeypatch):
    source = folder if out == "mine.pt" else trained
    run(source, tmp_path / out)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"exists already.*force=true"):
        run(source, tmp_path / out)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        patch.setattr(weights_folder, "save_file", full_disk)
        with pytest.raises(UserError, match=r"out=.*cannot be written.*No space left"):
            run(source, tmp_path / out, "force=true")
    assert contents(tmp_path) == before
    run(source, tmp_path / out, "force=true", "ema=2k")
    assert contents(tmp_path).keys() == before.keys()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["weights", "weights.pt", "text.pt/weights"])
def test_force_replaces_nothing_else(folder, trained, tmp_path, out):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "photo.png").write_text("dear")
    (tmp_path / "weights.pt").mkdir()
    (tmp_path / "text.pt").write_text("dear")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"something else is there|cannot be written"):
        run(trained if out == "weights" else folder, tmp_path / out, "force=true")
    assert contents(tmp_path) == before


class Foreign:
    """A class that a weights file has no business to hold."""


def spoil_config(folder, change):
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("trunk.0.mlp.w1.weight")
    save_file(weights, folder / "model.safetensors")


def run_foreign_code(about):
    about["config"]["optimizer"]["_target_"] = "os.system"


SPOILT = {
    "config.json cannot be read as JSON": lambda folder: (folder / "config.json").write_text("{"),
    "is not a config.json of pmf_lightning": lambda folder: (folder / "config.json").write_text(
        '{"model_type": "vit"}'
    ),
    "format version 2": lambda folder: spoil_config(folder, lambda about: about.update(version=2)),
    "no valid source, config": lambda folder: spoil_config(folder, lambda about: about.update(config=1, source=2)),
    "outside pmf_lightning (os.system); refused": lambda folder: spoil_config(folder, run_foreign_code),
    "holds no model.safetensors": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors cannot be read": lambda folder: (folder / "model.safetensors").write_bytes(bytes(100)),
    "do not belong together (trunk.0.mlp.w1.weight": drop_a_weight,
    "do not belong together (": lambda folder: spoil_config(
        folder, lambda about: about["config"]["backbone"].update(mlp_dim=24)
    ),
}


@pytest.mark.parametrize("words", SPOILT)
def test_spoilt_folders_are_refused(folder, tmp_path, words):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    SPOILT[words](spoilt)
    for use in (lambda: load_checkpoint(spoilt), lambda: run(spoilt, tmp_path / "back.pt")):
        with pytest.raises(UserError) as refusal:
            use()
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_folder_has_one_set_of_weights(folder):
    assert load_checkpoint(folder, "2k").config["sampling"]["ema"] == "2k"
    with pytest.raises(UserError, match=r"ema=raw: .* one set of weights, 2k; leave ema out"):
        load_checkpoint(folder, "raw")


def test_training_goes_on_from_checkpoints_alone(folder, tmp_path):
    with pytest.raises(UserError, match="weights to sample with; training resumes from a checkpoint"):
        train(compose([*RUN, f"ckpt={folder}", f"run_dir={tmp_path / 'run'}"]))


@pytest.fixture
def call(call_command):
    """Call the command in an empty folder; return (exit status, stdout, stderr)."""
    return partial(call_command, convert_main)


def test_help_names_choices_and_examples(call):
    status, output, _ = call("--help")
    assert status == 0
    assert "python -m pmf_lightning.convert in=pMF-B-16.pt" in output
    assert "pmf_h16" in output


def test_the_command_says_what_lies_where(call, trained, tmp_path):
    status, output, _ = call(f"in={trained}", "out=deep/weights")
    assert status == 0
    assert "deep/weights: weights 2k of pmf_tiny" in output
    assert "python -m pmf_lightning.sample ckpt=deep/weights" in output
    status, output, _ = call("in=deep/weights", "out=mine.pt")
    assert status == 0
    assert "mine.pt: weights 2k of pmf_tiny" in output
    assert "official names of pMF" in output
    assert (tmp_path / "mine.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out=x"], ["in is not set"]),
        (["in=mine.pt"], ["out is not set"]),
        (["in=nowhere.pt", "out=x"], ["in=nowhere.pt", "no such file"]),
        (["in=empty", "out=x"], ["in=empty", "no checkpoints/last.ckpt"]),
        (["in=text.pt", "out=x"], ["text.pt", "cannot be read"]),
        (["in=code.pt", "out=x"], ["code.pt", "cannot be read", "test_convert.Foreign"]),
        (["in=nested.pt", "out=x"], ["not a flat dictionary of tensors", "choose ema=model_ema2"]),
        (["in=other.pt", "out=x"], ["not official weights of pMF, iMF or JiT"]),
        (["in=half.ckpt", "out=x"], ["in=half.ckpt", "not a checkpoint of pmf_lightning"]),
        (["in=mine.pt", "out=x.pt"], ["in=mine.pt out=x.pt", "both are official files"]),
        (["in=mine.pt", "out=x", "ema=2k"], ["ema=2k", "leave ema out"]),
        (["in=mine.pt", "out=x", "model=pmf_b16"], ["looks like pMF (width 64", "pMF-B/16", "256 pixels wide"]),
        (["in=mine.pt", "out=x", "model=pmf_b61"], ["model=pmf_b61", "pmf_b16"]),
        (["in=mine.pt", "out=x", "model=pmf_digits"], ["width 64", "width 96"]),
        (["in=odd.pt", "out=x"], ["looks like pMF (width 64, 3 blocks", "matches no preset", "model="]),
        (["in=mine.pt", "out=x", "backbone.width=3"], ["backbone"]),
        (["in=FOLDER", "out=x"], ["both are folders"]),
        (["in=FOLDER", "out=x.pt", "model=pmf_tiny", "data=digits"], ["has its own", "leave model and data out"]),
        (["in=FOLDER", "out=x.pt", "ema=raw"], ["ema=raw", "one set of weights, 2k"]),
        (["in=RUN", "out=x", "ema=9k"], ["ema=9k", "2k"]),
        (["in=RUN", "out=x", "data=digits"], ["data=...", "leave data out"]),
        (["in=mine.pt", "out=/proc/nowhere/x"], ["out=/proc/nowhere", "cannot be written"]),
        (["in=RUN", "out=x.safetensors"], ["out=x.safetensors", "name of a folder"]),
        (["in=mine.pt", "out=mine.pt", "force=true"], ["out=mine.pt", "it is the same as in"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, monkeypatch, trained, folder, mine, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, value in mine.items():
        torch.save(value, tmp_path / name)
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    arguments = [a.replace("RUN", str(trained)).replace("FOLDER", str(folder)) for a in arguments]
    with pytest.raises(UserError) as refusal:
        convert(compose(arguments, "convert"))
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert contents(tmp_path) == before


def test_the_command_reports_bad_input_as_one_line(call):
    status, _, errors = call("in=nowhere.pt", "out=x")
    assert status == 2
    assert errors.startswith("error: in=nowhere.pt: no such file")
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def mine():
    """Contents of files, good and bad."""
    weights = small("pMF")
    return {
        "mine.pt": weights,
        "odd.pt": {name: value for name, value in weights.items() if not name.startswith("net.shared_blocks.1.")},
        "code.pt": {"net": Foreign()},
        "nested.pt": {"model": weights, "model_ema2": weights},
        "other.pt": {"conv.weight": torch.zeros(1)},
        "half.ckpt": {"state_dict": {}, "config": {}},
    }
