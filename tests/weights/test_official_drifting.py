"""Released files of drifting's generators: every size, names and layouts, the way back, and refusals."""

import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch
from flax_files import nested, write
from test_drifting_network import arrays, empty_network, golden, inputs  # noqa: F401  (fixtures)

from pmf_lightning import UserError, compose, load_checkpoint, load_official, official_weights
from pmf_lightning.config.presets import published
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.convert import convert
from pmf_lightning.evaluate import evaluate
from pmf_lightning.pipeline import checkpoints
from pmf_lightning.pipeline.checkpoints import load_with_averages
from pmf_lightning.sample import sample
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.weights import drifting
from pmf_lightning.weights.drifting import (
    generator_arrays,
    generator_tensors,
    load_official_generator,
)

# width, blocks, heads, SwiGLU hidden; image, channels, patch
SIZES = {
    "drifting_b16": (768, 12, 12, 2048, 256, 3, 16),
    "drifting_l16": (1024, 24, 16, 2752, 256, 3, 16),
    "drifting_b2": (768, 12, 12, 2048, 32, 4, 2),
    "drifting_l2": (1024, 24, 16, 2752, 32, 4, 2),
}


def shapes(model):
    """Official names and shapes of a released file, as the official classes make them."""
    d, blocks, heads, hidden, side, channels, patch = SIZES[model]
    numbers, found = channels * patch**2, {}

    def dense(name, fan_in, fan_out):
        found[f"{name}/Dense_0/kernel"], found[f"{name}/Dense_0/bias"] = (fan_in, fan_out), (fan_out,)

    found |= {"Embed_0/embedding": (1000, d), "RMSNorm_0/weight": (d,)}
    found |= {f"noise_embeds_{i}/embedding": (64, d) for i in range(32)}
    dense("TimestepEmbedder_0/TorchLinear_0", 256, d)
    dense("TimestepEmbedder_0/TorchLinear_1", d, d)
    dense("LightningDiT_0/TorchLinear_0", numbers, d)
    dense("LightningDiT_0/TorchLinear_1", d, d)
    found |= {"LightningDiT_0/pos_embed": (1, (side // patch) ** 2, d), "LightningDiT_0/cls_embed": (1, 16, d)}
    for i in range(blocks):
        block = f"LightningDiT_0/blocks_{i}"
        found |= {f"{block}/RMSNorm_{j}/weight": (d,) for j in range(2)}
        found |= {f"{block}/Attention_0/{q}_norm/weight": (d // heads,) for q in "qk"}
        dense(f"{block}/Attention_0/TorchLinear_0", d, 3 * d)
        dense(f"{block}/Attention_0/TorchLinear_1", d, d)
        dense(f"{block}/SwiGLUFFN_0/TorchLinear_0", d, hidden)
        dense(f"{block}/SwiGLUFFN_0/TorchLinear_1", d, hidden)
        dense(f"{block}/SwiGLUFFN_0/TorchLinear_2", hidden, d)
        dense(f"{block}/TorchLinear_0", d, 6 * d)
    found["LightningDiT_0/FinalLayer_0/RMSNorm_0/weight"] = (d,)
    dense("LightningDiT_0/FinalLayer_0/TorchLinear_0", d, 2 * d)
    dense("LightningDiT_0/FinalLayer_0/TorchLinear_1", d, numbers)
    return found


def file(model):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes(model).items()}


@cache
def preset_network(model):
    cfg = compose([f"model={model}", f"data={published()[model].data}"])
    with torch.device("meta"):
        return instantiate(without_table(cfg, "backbone"), _convert_="all")


def on_meta(**changes):
    with torch.device("meta"):
        return empty_network(**changes)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def release(arrays, tmp_path):  # noqa: F811
    """A folder as the official code writes it."""
    folder = tmp_path / "params_ema"
    folder.mkdir()
    write(folder / "ema_params.msgpack", nested({name: value.numpy() for name, value in arrays.items()}))
    (folder / "metadata.json").write_text(json.dumps({"kind": "gen"}))
    return tmp_path


@pytest.mark.parametrize("model", SIZES)
def test_every_size(model):
    wanted, made = shapes(model), preset_network(model)
    assert len(wanted) == 16 * SIZES[model][1] + 49
    assert sum(torch.Size(shape).numel() for shape in wanted.values()) == published()[model].parameters
    assert {name: tuple(value.shape) for name, value in generator_arrays(made).items()} == wanted
    ours = generator_tensors(file(model), made)
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in made.state_dict().items()}


def test_the_official_tree_of_names(arrays):  # noqa: F811
    """Those that flax itself gave."""
    assert {n: v.shape for n, v in generator_arrays(on_meta()).items()} == {n: v.shape for n, v in arrays.items()}


@pytest.mark.parametrize("empty", [on_meta, empty_network])
@pytest.mark.parametrize("place", [".", "params_ema", "params_ema/ema_params.msgpack"])
def test_a_release_is_loaded_and_comes_back_bit_by_bit(release, arrays, golden, empty, place):  # noqa: F811
    made = empty()
    assert load_official(release / place, made) is made
    assert same(generator_arrays(made), arrays)
    with torch.no_grad():
        out = made(*inputs(golden, torch.float32))["u"]
    assert (out - golden["out"]).abs().max() < 1e-5
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in made.parameters())


def test_a_dictionary_half_precision_and_an_outer_params_are_taken(arrays):  # noqa: F811
    given = {f"params/{name}": value.bfloat16() for name, value in arrays.items()}
    made = load_official(given, empty_network())
    assert same(generator_arrays(made), {name: value.bfloat16().float() for name, value in arrays.items()})
    again = load_official(generator_arrays(made), empty_network())
    assert same(again.state_dict(), made.state_dict())


def changed(arrays, **changes):  # noqa: F811
    """Arrays with some replaced, by the end of their names; None takes one out."""
    found = dict(arrays)
    for end, value in changes.items():
        name = next((name for name in arrays if name.endswith(end)), end)
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cls_embed": None},
            r"it lacks LightningDiT_0/cls_embed; the file has 2 blocks of width 24 and patches of 48",
        ),
        ({"noise_embeds_4/embedding": None}, "it lacks noise_embeds_4/embedding"),
        ({"noise_embeds_5/embedding": torch.zeros(4, 24)}, "has the unknown arrays noise_embeds_5/embedding; the file"),
        (
            {"Embed_0/embedding": torch.zeros(8, 24)},
            r"Embed_0/embedding is \(8, 24\), not \(7, 24\)\); .* set the back",
        ),
        ({"pos_embed": torch.zeros(1, 16, 24)}, r"1 of 54 arrays .*pos_embed is \(1, 16, 24\), not \(1, 9, 24\)"),
    ],
)
def test_missing_unknown_and_other_sizes_are_named(arrays, changes, message):  # noqa: F811
    made = on_meta()
    with pytest.raises(UserError, match=f"some.msgpack: .*{message}"):
        generator_tensors(changed(arrays, **changes), made, "some.msgpack")


@pytest.mark.parametrize(
    ("given", "network", "message"),
    [
        (
            "drifting_b16",
            "drifting_l16",
            "it lacks .*blocks_12/.* and 186 more; .* 12 blocks .* take model=drifting_b16",
        ),
        (
            "drifting_l2",
            "drifting_b2",
            "unknown arrays .*blocks_12/.* and 186 more; .* take model=drifting_l2 with its data",
        ),
        ("drifting_b2", "drifting_b16", r"TorchLinear_0/Dense_0/kernel is \(16, 768\), .* take model=drifting_b2"),
    ],
)
def test_weights_of_another_model_are_named(given, network, message):
    with pytest.raises(UserError, match=message) as refusal:
        load_official(file(given), preset_network(network))
    assert "\n" not in str(refusal.value)


def test_what_is_no_generator_is_refused(release, tmp_path):
    with pytest.raises(UserError, match=r"it lacks .* is it a generator of drifting\?"):
        load_official({"fc/kernel": torch.zeros(3)}, on_meta())
    with pytest.raises(UserError, match=r"weights=model: official weights of drifting hold one set"):
        load_official(release, on_meta(), weights="model")
    with pytest.raises(UserError, match=r"absent\.msgpack: no such file"):
        load_official_generator(tmp_path / "absent.msgpack", on_meta())
    with pytest.raises(UserError, match="Drifting's official files are not PyTorch files"):
        official_weights(on_meta())


# From the command line

# The tiny network as a change of a preset.
SIZED = [
    *("model=drifting_b16", "data=digits", "data.resolution=12", "data.channels=3", "data.classes=7"),
    *("drift_features=raw", "backbone.patch=4", "backbone.width=24", "backbone.num_heads=2"),
    *(
        "backbone.mlp_dim=64",
        "backbone.depth=2",
        "backbone.context=3",
        "objective.style_codes=5",
        "objective.style_values=4",
    ),
]
PLACES = [".", "params_ema", "params_ema/ema_params.msgpack"]


def converted(source, out, *overrides):
    return convert(compose([f"in={source}", f"out={out}", *overrides], "convert"))


@pytest.mark.parametrize("place", PLACES)
def test_a_release_becomes_a_folder_of_weights(release, arrays, golden, tmp_path, place):  # noqa: F811
    stored = converted(release / place, tmp_path / "weights", *SIZED)
    assert (stored.about.family, stored.about.weights) == ("Drifting", "official")
    assert stored.about.source["file"] == "ema_params.msgpack"
    module = load_checkpoint(tmp_path / "weights")
    assert same(generator_arrays(module.network), arrays)
    with torch.no_grad():
        out = module.network(*inputs(golden, torch.float32))["u"]
    assert (out - golden["out"]).abs().max() < 1e-5


@pytest.fixture
def known(monkeypatch):
    """Let the sizes of the tiny network be those of a preset."""
    monkeypatch.setitem(drifting._PRESETS, (24, 2, 48), "drifting_b16")
    monkeypatch.setattr(checkpoints, "compose", lambda overrides: compose(SIZED))


@pytest.mark.parametrize("place", PLACES)
def test_a_release_is_sampled_and_judged_as_it_is(release, arrays, tmp_path, monkeypatch, known, place):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    given = f"ckpt={release / place}"
    made = sample(compose([given, "n=3", "out=drawn"], "sample"))
    assert made["nfe"] == 1
    module, sets = load_with_averages(release / place)
    assert sets == {"official": {}}
    assert same(generator_arrays(module.network), arrays)
    rules = ["extractor=module", "extractor.name=means", "extractor.features=4", "reference=stats.npz", "protocol.n=4"]
    rules += ["extractor.module={_target_: features_of_tests.Quarters}"]
    np.savez("stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    judged = evaluate(compose([given, *rules, "n=4", "out=judged"], "evaluate"))
    assert (judged["ema"], judged["model"], judged["nfe"]) == ("official", "drifting_b16", 1)
    digest = hashlib.sha256((release / "params_ema" / "ema_params.msgpack").read_bytes()).hexdigest()
    assert judged["checkpoint_sha256"] == digest


@pytest.mark.parametrize(
    ("place", "overrides", "message"),
    [
        ("params_ema", [], "in=.*params_ema: the file has 2 blocks of width 24 .*which no preset has; give model="),
        ("params_ema", ["model=drifting_b16"], "in=.*params_ema: 5. of 2.. arrays|in=.*params_ema: it lacks"),
        ("params_ema", ["model=pmf_b16"], "in=.*params_ema: .* no preset has"),
        ("params_ema", ["ema=raw"], "ema=raw: .* holds one set of weights; leave ema out"),
        ("params_ema", ["data=imagenet256"], "data=imagenet256: add model=, or leave data out"),
        ("gone.msgpack", [], "in=.*gone.msgpack: no such file"),
    ],
)
def test_releases_that_cannot_be_converted(release, tmp_path, place, overrides, message):
    with pytest.raises(UserError, match=message) as refused:
        converted(release / place, tmp_path / "weights", *overrides)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "weights").exists()


def test_other_msgpacks_are_one_line(release, tmp_path, monkeypatch):
    """A damaged file, and an encoder's, to convert and to sample."""
    file = release / "params_ema" / "ema_params.msgpack"
    with pytest.raises(UserError, match=r"both are official files"):
        converted(release, tmp_path / "other.pt")
    write(file, {"fc": {"kernel": np.zeros((3, 2), np.float32)}})
    for call, key in ((lambda: converted(file, tmp_path / "w"), "in"), (lambda: load_checkpoint(file), "ckpt")):
        with pytest.raises(UserError, match=rf"{key}=.*msgpack: holds no generator of drifting; an encoder is used by"):
            call()
    file.write_bytes(b"\xc1 no msgpack")
    for call, key in ((lambda: converted(file, tmp_path / "w"), "in"), (lambda: load_checkpoint(file), "ckpt")):
        with pytest.raises(UserError, match=rf"^{key}=.*ema_params.msgpack: cannot be read as a .msgpack"):
            call()
