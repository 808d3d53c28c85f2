"""Released files of JiT: every size from the paper's numbers, which set of weights is taken, refusals, and back."""

import json
import os
from argparse import Namespace
from functools import cache

import pytest
import torch
from common import normal
from test_jit_network import SMALL, empty_network, network
from test_official_sizes import file as meanflow_file

from pmf_lightning import UserError, build, compose, load_checkpoint, load_official, official_weights
from pmf_lightning.config.presets import published
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.convert import convert
from pmf_lightning.pipeline.conversion import from_official
from pmf_lightning.profiling.model_cost import count
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.weights import family_of, recognise, translate
from pmf_lightning.weights.families import JIT

# width, bottleneck, SwiGLU hidden, heads, blocks; patch; parameters in millions; 10^9 multiply-adds
SIZES = {
    "jit_b16": ((768, 128, 2048, 12, 12), 16, 131.12, 25.2),
    "jit_b32": ((768, 128, 2048, 12, 12), 32, 133.19, None),
    "jit_b64": ((768, 128, 2048, 12, 12), 64, 141.46, 27.9),
    "jit_l16": ((1024, 128, 2730, 16, 24), 16, 458.88, 87.9),
    "jit_l32": ((1024, 128, 2730, 16, 24), 32, 461.53, None),
    "jit_h16": ((1280, 256, 3413, 16, 32), 16, 952.51, 181.9),
    "jit_h32": ((1280, 256, 3413, 16, 32), 32, 956.06, None),
    "jit_g16": ((1664, 256, 4437, 16, 40), 16, 2007.1, 383.7),
    "jit_g32": ((1664, 256, 4437, 16, 40), 32, 2011.6, None),
}
TINY = ["model=jit_b16", "data=digits", "backbone.patch=8", "backbone.context=4", *SMALL]
SETS = ("model", "model_ema1", "model_ema2")


def shapes(name, side=None):
    """Official names and shapes of the file of a preset, as the official repository has them."""
    (d, b, m, heads, blocks), p, *_ = SIZES[name]
    patches = ((side or 16 * p) // p) ** 2
    found = {
        **{"pos_embed": (1, patches, d), "in_context_posemb": (1, 32, d)},
        **{"t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.0.bias": (d,)},
        **{"t_embedder.mlp.2.weight": (d, d), "t_embedder.mlp.2.bias": (d,)},
        "y_embedder.embedding_table.weight": (1001, d),
        "x_embedder.proj1.weight": (b, 3, p, p),
        **{"x_embedder.proj2.weight": (d, b, 1, 1), "x_embedder.proj2.bias": (d,)},
        "final_layer.norm_final.weight": (d,),
        **{"final_layer.linear.weight": (3 * p * p, d), "final_layer.linear.bias": (3 * p * p,)},
        **{"final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,)},
    }
    block = {
        **{"norm1.weight": (d,), "norm2.weight": (d,)},
        **{f"attn.{q}_norm.weight": (d // heads,) for q in "qk"},
        **{"attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,)},
        **{"attn.proj.weight": (d, d), "attn.proj.bias": (d,)},
        **{"mlp.w12.weight": (2 * m, d), "mlp.w12.bias": (2 * m,)},
        **{"mlp.w3.weight": (d, m), "mlp.w3.bias": (d,)},
        **{"adaLN_modulation.1.weight": (6 * d, d), "adaLN_modulation.1.bias": (6 * d,)},
    }
    return found | {f"blocks.{i}.{part}": shape for i in range(blocks) for part, shape in block.items()}


def file(name, **options):
    return {f"net.{key}": torch.empty(shape, device="meta") for key, shape in shapes(name, **options).items()}


@cache
def preset_network(name):
    cfg = compose([f"model={name}", f"data={published()[name].data}"], "convert")
    with torch.device("meta"):
        return instantiate(without_table(cfg, "backbone"), _convert_="all")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def values(made, name):
    """Official weights of other values than the network's, with its table of positions."""
    found = {}
    for key, value in official_weights(made).items():
        fixed = key == "net.pos_embed"
        found[key] = value.clone() if fixed else normal(name, key, shape=tuple(value.shape), dtype=torch.float32)
    return found


@pytest.fixture(scope="module")
def released():
    """The contents of a checkpoint-last.pth: three sets, an optimiser's state, the arguments of the run."""
    made = build(compose(TINY)).network
    sets = {name: values(made, name) for name in SETS}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    arguments = Namespace(model="JiT-B/16", betas=[0.9, 0.95], output_dir=None, distributed=False, lr=2e-4)
    return {**sets, "optimizer": optimizer, "epoch": 599, "args": arguments}


@pytest.fixture
def path(released, tmp_path):
    torch.save(released, tmp_path / "checkpoint-last.pth")
    return tmp_path / "checkpoint-last.pth"


@pytest.fixture
def tiny():
    return build(compose(TINY)).network


# Sizes


@pytest.mark.parametrize("name", SIZES)
def test_every_size(name):
    (width, _, _, _, blocks), patch, millions, adds = SIZES[name]
    weights, made = file(name), preset_network(name)
    assert len(weights) == 14 * blocks + 15
    trained = sum(value.numel() for key, value in weights.items() if key != "net.pos_embed")
    assert trained == published()[name].parameters == published()[name].training_parameters
    assert round(trained / 1e6, 1 if millions > 2000 else 2) == millions
    assert trained == sum(weight.numel() for weight in made.parameters())
    if adds:
        assert round(count(made).multiply_adds / 1e9, 1) == adds
    plain = {key.removeprefix("net."): value for key, value in weights.items()}
    ours, aside = translate(plain, made)
    assert {key: value.shape for key, value in ours.items()} == {n: v.shape for n, v in made.state_dict().items()}
    assert aside.keys() == {"pos_embed"}
    back = official_weights(made)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in weights.items()}
    seen = recognise(plain)
    assert (seen.family, seen.preset, seen.width, seen.blocks, seen.patch) == (JIT, name, width, blocks, patch)
    assert (seen.side, seen.channels, seen.classes) == (16 * patch, 3, 1000)
    assert load_official(weights, made) is made


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        (file("jit_l16"), "jit_b16", ["like JiT-L/16 (width 1024, 24 blocks", "is JiT-B/16", "choose model=jit_l16"]),
        (file("jit_b32"), "jit_b16", ["like JiT-B/32", "512 pixels wide", "choose model=jit_b32"]),
        (file("jit_b16", side=512), "jit_b16", ["JiT-B/16", "512 pixels wide", "with data of the file's size"]),
        (meanflow_file("pmf_b16"), "jit_b16", ["like pMF-B/16", "is JiT-B/16", "choose model=pmf_b16"]),
        (meanflow_file("imf_b2"), "jit_h16", ["like iMF-B/2", "is JiT-H/16", "choose model=imf_b2"]),
        (file("jit_b16"), "pmf_b16", ["like JiT-B/16", "is pMF-B/16", "choose model=jit_b16"]),
        (file("jit_h32"), "imf_b2", ["like JiT-H/32", "is iMF-B/2", "choose model=jit_h32"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_of_another_model_are_named(wrong, right, words):
    with pytest.raises(UserError) as refusal:
        load_official(wrong, preset_network(right))
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("net.blocks.3.attn.qkv.bias"), "missing: blocks.3.attn.qkv.bias"),
        (lambda weights: weights.pop("net.pos_embed"), "missing: pos_embed"),
        (lambda weights: weights.update({"net.v_final_layer.norm.weight": torch.zeros(1)}), "unexpected: v_final"),
        (
            lambda weights: weights.update({"net.blocks.0.mlp.w3.bias": torch.zeros(3, device="meta")}),
            r"of another shape: blocks.0.mlp.w3.bias \(3,\) instead of \(768,\)",
        ),
    ],
)
def test_every_name_counts(change, message):
    weights = file("jit_b16")
    change(weights)
    with pytest.raises(UserError, match=rf"official JiT weights of this network \({message}"):
        load_official(weights, preset_network("jit_b16"))


# Values


def test_the_way_there_and_back_changes_no_bit(tiny):
    weights = values(tiny, "flat")
    assert not same(official_weights(tiny), weights)
    load_official(weights, tiny)
    assert same(official_weights(tiny), weights)
    assert same(official_weights(tiny, prefix=""), {key.removeprefix("net."): value for key, value in weights.items()})
    again = build(compose(TINY)).network
    load_official(official_weights(tiny, prefix="", inference=True), again)
    assert same(again.state_dict(), tiny.state_dict())
    assert family_of(tiny) is JIT


def test_the_table_of_positions_is_the_official_one(tiny):
    """By numpy in float64, the column in the first half, and from the file where that differs by a rounding."""
    import numpy as np

    table = official_weights(tiny)["net.pos_embed"]
    assert table.shape == (1, 16, 32)
    assert table.dtype == torch.float32
    angles = np.arange(4)[:, None] / 10_000 ** (np.arange(8) / 8)
    line = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
    expected = np.concatenate((np.tile(line, (4, 1)), np.repeat(line, 4, axis=0)), axis=1)
    assert np.abs(table[0].numpy() - expected).max() < 1e-7
    assert (table[0, 0] == torch.tensor([0.0, 1.0] * 2).repeat_interleave(8)).all()
    weights = values(tiny, "flat")
    weights["net.pos_embed"] = table + 1e-6  # an average may have drifted
    ours, aside = translate({key.removeprefix("net."): value for key, value in weights.items()}, tiny)
    assert same(official_weights(tiny, weights=ours, aside=aside), weights)


@pytest.mark.parametrize("spoil", ["row first", "nan"])
def test_other_positions_are_refused(tiny, spoil):
    weights = values(tiny, "flat")
    table = weights["net.pos_embed"]
    weights["net.pos_embed"] = torch.cat((table[..., 16:], table[..., :16]), -1) if spoil == "row first" else table / 0
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(UserError, match=r"pos_embed differs from this network's fixed values \(by up to"):
        load_official(weights, tiny)
    assert same(tiny.state_dict(), before)


@pytest.mark.parametrize("changes", [{"bottleneck": None}, {"context": 0}])
def test_an_architecture_that_no_official_file_has(changes):
    for use in (official_weights, lambda made: load_official(file("jit_b16"), made)):
        with pytest.raises(UserError, match="JiT's has a bottleneck and class tokens"):
            use(empty_network(**changes))


def test_a_loaded_network_answers_as_its_source():
    made, image = network(torch.float32), normal("image", shape=(2, 3, 6, 6), dtype=torch.float32)
    conditions = {"label": torch.tensor([0, 5]), "t": torch.tensor([0.2, 0.9])}
    other = load_official(official_weights(made), network(torch.float32, bottleneck=7))
    with torch.no_grad():
        assert torch.equal(made(image, conditions)["u"], other(image, conditions)["u"])


# Files


@pytest.mark.parametrize("weights", [None, *SETS])
def test_released_file(released, path, tiny, weights):
    load_official(path, tiny, weights=weights)
    assert same(official_weights(tiny), released[weights or "model_ema1"])
    load_official({name: released[name] for name in SETS}, tiny, weights="model")
    assert same(official_weights(tiny), released["model"])


def test_a_set_that_is_not_there(released, path, tiny, tmp_path):
    with pytest.raises(UserError, match=r"weights=ema: official weights .* hold model_ema1, model_ema2, model: choose"):
        load_official(path, tiny, weights="ema")
    with pytest.raises(UserError, match=r"weights=model: .* one set of weights; leave weights out"):
        load_official(released["model"], tiny, weights="model")
    torch.save({"model": released["model"], "epoch": 3}, tmp_path / "raw.pth")
    load_official(tmp_path / "raw.pth", tiny)  # the only set, as in files of FD-loss
    assert same(official_weights(tiny), released["model"])
    torch.save({name: released[name] for name in SETS if name != "model_ema1"}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"two\.pth are not a flat dictionary of tensors; choose weights=model_ema2"):
        load_official(tmp_path / "two.pth", tiny)


class Foreign:
    """A class that a weights file has no business to hold."""


class Command:
    """What runs a command where a pickle is read carelessly."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("thing", "name"), [(Foreign(), "test_official_jit.Foreign"), (Command(), "posix.mkdir")])
def test_foreign_code_is_named_and_not_run(released, tiny, tmp_path, monkeypatch, thing, name, zipped):
    monkeypatch.chdir(tmp_path)
    arguments = Namespace(model="JiT-B/16", more=thing)
    torch.save({**released, "args": arguments}, "bad.pth", _use_new_zipfile_serialization=zipped)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        load_official("bad.pth", tiny)
    assert f"bad.pth cannot be read as weights: it contains {name}, whose code" in str(refusal.value)
    assert "save only its tensors" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert same(tiny.state_dict(), before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.pth"]


def test_arguments_are_read_by_this_reader_alone(path, tiny):
    load_official(path, tiny)
    assert Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


# Conversion


def run(source, out, *changes):
    return convert(compose([f"in={source}", f"out={out}", *changes], "convert"))


@pytest.mark.parametrize("ema", [None, "model_ema2", "model"])
def test_convert_to_folder_and_back(released, path, tmp_path, ema):
    stored = run(path, tmp_path / "folder", *TINY, *([f"ema={ema}"] if ema else []))
    about = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (about["family"], about["weights"]) == ("JiT", ema or "model_ema1")
    assert about["source"]["file"] == "checkpoint-last.pth"
    assert stored.about.config["name"] == "jit_b16"
    run(tmp_path / "folder", tmp_path / "back.pt")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), released[ema or "model_ema1"])
    module = load_checkpoint(tmp_path / "folder")
    assert same(official_weights(module.network), released[ema or "model_ema1"])
    assert module.objective == build(compose(TINY)).objective


def test_convert_names_what_does_not_fit(released, path, tmp_path):
    torch.save(released["model"], tmp_path / "flat.pt")
    for source, change, message in (
        (path, "ema=2k", "ema=2k: official weights .* hold model_ema1, model_ema2, model: choose one"),
        (tmp_path / "flat.pt", "ema=model", "ema=model: .* hold one set of weights; leave ema out"),
        (path, "model=jit_b32", r"looks like JiT \(width 32, 4 blocks, patch 8.* is JiT-B/32"),
    ):
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "folder", change, *(TINY if change.startswith("ema") else []))
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("name", ["jit_b64", "jit_l32"])
def test_released_models_are_found_with_their_data(name, tmp_path):
    (tmp_path / "empty.pth").touch()
    contents = {"model_ema1": file(name), "args": Namespace()}
    stored = from_official(contents, tmp_path / "empty.pth", compose(["in=a", "out=b"], "convert"))
    assert stored.about.config["name"] == name
    assert stored.about.config["data"]["name"] == published()[name].data
    assert stored.about.weights == "model_ema1"


def test_a_trained_network_becomes_an_official_file(tmp_path):
    """From a checkpoint there is no table of positions to keep: ours is written."""
    module = build(compose(TINY))
    weights = module.network.state_dict()
    average = module.config["sampling"]["ema"]
    state = {f"network.{name}": value for name, value in weights.items()}
    torch.save({"config": module.config, "state_dict": state, "ema": {average: weights}}, tmp_path / "own.ckpt")
    run(tmp_path / "own.ckpt", tmp_path / "mine.pt")
    assert same(torch.load(tmp_path / "mine.pt", weights_only=True), official_weights(module.network))
