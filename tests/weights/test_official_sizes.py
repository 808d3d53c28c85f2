"""Every released size, from the papers' numbers: what its file holds, and that our preset is that network."""

from functools import cache

import pytest
import torch

from pmf_lightning import UserError, compose
from pmf_lightning.config.presets import published
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.weights import FAMILIES, family_of, load_official, look, official_weights, preset, translate

PAPER = {family.name: family for family in FAMILIES}
# (width, SwiGLU hidden, attention heads, shared blocks, patch, side, bottleneck), parameters to sample, to train
PMF = {
    "pmf_b4": ((768, 2048, 12, 8, 4, 64, 128), 117_588_400, 174_274_784),
    "pmf_b16": ((768, 2048, 12, 8, 16, 256, 128), 118_234_240, 175_474_304),
    "pmf_b32": ((768, 2048, 12, 8, 32, 512, 128), 120_300_928, 179_312_768),
    "pmf_b64": ((768, 2048, 12, 8, 64, 1024, 128), 128_567_680, 194_666_624),
    "pmf_l16": ((1024, 2730, 16, 24, 16, 256, 128), 410_320_768, 511_789_696),
    "pmf_l32": ((1024, 2730, 16, 24, 32, 512, 128), 412_977_280, 516_807_808),
    "pmf_h16": ((1280, 3416, 16, 40, 16, 256, 256), 955_508_992, 1_113_904_640),
    "pmf_h32": ((1280, 3416, 16, 40, 32, 512, 256), 959_050_240, 1_120_397_312),
}
IMF = {  # parameters to sample with the final v layer, which the released files hold
    "imf_b2": ((768, 2048, 12, 4, 2, 32, None), 88_948_256, 145_596_960),
    "imf_m2": ((768, 2048, 12, 16, 2, 32, None), 173_921_312, 230_570_016),
    "imf_l2": ((1024, 2730, 16, 24, 2, 32, None), 409_071_648, 509_752_352),
    "imf_xl2": ((1024, 2730, 16, 40, 2, 32, None), 610_433_056, 711_113_760),
}
SIZES = PMF | IMF
U_BLOCKS = V_BLOCKS = 8


def block(width, hidden, head_dim):
    """The 13 weights of a block."""
    linear = "_flax_linear.weight"
    return {
        **{f"{name}.weight": (width,) for name in ("norm1", "norm2")},
        **{f"attn.{name}_proj.{linear}": (width, width) for name in ("q", "k", "v", "out")},
        **{f"attn.{name}_norm.weight": (head_dim,) for name in ("q", "k")},
        **{f"mlp.{name}.{linear}": (hidden, width) for name in ("w1", "w3")},
        f"mlp.w2.{linear}": (width, hidden),
        **{name: (width,) for name in ("attn_scale", "mlp_scale")},
    }


def shapes(name, training=False, side=None):
    """Official names and shapes of the file of a preset, as the papers' repositories describe them."""
    imf = name.startswith("imf")
    (width, hidden, heads, shared, patch, native, bottleneck), *_ = SIZES[name]
    channels, pixels = (4 if imf else 3), (side or native)
    tokens = {"class": 8, "omega": 4, "t_min": 2, "t_max": 2, "time": 4}
    found = {f"{kind}_tokens": (n, width) if imf else (1, n, width) for kind, n in tokens.items()}
    if imf:
        found |= {"x_embedder.proj.weight": (width, channels, patch, patch), "x_embedder.proj.bias": (width,)}
    else:
        found |= {"x_embedder.proj1.weight": (bottleneck, channels, patch, patch)}
        found |= {"x_embedder.proj1.bias": (bottleneck,)}
        found |= {"x_embedder.proj2.weight": (width, bottleneck, 1, 1), "x_embedder.proj2.bias": (width,)}
        found |= {"pos_embed": (1, 20 + (pixels // patch) ** 2, width)}
        found |= {"rope_freqs": ((pixels // patch) ** 2, width // heads // 2)}
    for kind in ("h", "omega", "cfg_t_start", "cfg_t_end"):
        for layer, fan_in in ((0, 256), (2, width)):
            where = f"{kind}_embedder.mlp.{layer}._flax_linear"
            found |= {f"{where}.weight": (width, fan_in), f"{where}.bias": (width,)}
    found |= {"y_embedder.embedding_table._flax_embedding.weight": (1001, width)}
    stacks = {"shared_blocks": shared, "u_heads": U_BLOCKS, "v_heads": V_BLOCKS if training else 0}
    parts = block(width, hidden, width // heads)
    for stack, depth in stacks.items():
        found |= {f"{stack}.{i}.{part}": shape for i in range(depth) for part, shape in parts.items()}
    for head in ("u", "v") if imf or training else ("u",):
        linear, out = f"{head}_final_layer.linear._flax_linear", patch * patch * channels
        found |= {f"{head}_final_layer.norm.weight": (width,)}
        found |= {f"{linear}.weight": (out, width), f"{linear}.bias": (out,)}
    return found


def file(name, **options):
    """The file of a preset on the meta device, RoPE buffers in complex numbers."""
    return {
        f"net.{key}": torch.empty(shape, device="meta", dtype=torch.complex64 if key == "rope_freqs" else None)
        for key, shape in shapes(name, **options).items()
    }


def parameters(weights):
    return sum(value.numel() for key, value in weights.items() if not key.endswith("rope_freqs"))


@cache
def network(name):
    """Our preset on the data that it is published for, without memory."""
    cfg = compose([f"model={name}", f"data={published()[name].data}"], "convert")  # the command with least in it
    with torch.device("meta"):
        return instantiate(without_table(cfg, "backbone"), _convert_="all")


@pytest.mark.parametrize("name", SIZES)
def test_released_file(name):
    released, blocks = file(name), SIZES[name][0][3] + U_BLOCKS
    assert len(released) == 13 * blocks + (30 if name in IMF else 31)
    assert parameters(released) == SIZES[name][1]
    bare = {key.removeprefix("net."): value for key, value in released.items()}
    ours, aside = translate(bare, network(name))
    theirs = {key: value.shape for key, value in network(name).state_dict().items() if not key.startswith("heads.v.")}
    assert {key: value.shape for key, value in ours.items()} == theirs
    assert aside.keys() == {key for key in bare if key.startswith("v_")}
    assert load_official(released, network(name)) is network(name)


@pytest.mark.parametrize("name", SIZES)
def test_training_file_and_the_way_back(name):
    full = {key: value for key, value in file(name, training=True).items() if key != "net.rope_freqs"}
    assert parameters(full) == SIZES[name][2] == sum(weight.numel() for weight in network(name).parameters())
    for inference, expected in ((False, full), (True, file(name))):
        back = official_weights(network(name), inference=inference)
        assert {key: value.shape for key, value in back.items()} == {
            key: value.shape for key, value in expected.items() if key != "net.rope_freqs"
        }
    load_official(full, network(name))


@pytest.mark.parametrize(("family", "model"), [(name, model) for name in PAPER for model in PAPER[name].models])
def test_models_have_the_names_of_presets(family, model):
    ours = network(preset(model))
    assert family_of(ours) is PAPER[family]
    seen = look(PAPER[family], official_weights(ours, prefix=""))
    assert (seen.model, seen.preset) == (model, preset(model))
    assert (seen.width, seen.blocks, seen.patch) == PAPER[family].models[model]
    assert (seen.channels, seen.classes) == (ours.channels, ours.classes)
    assert seen.side == (None if family == "iMF" else ours.resolution)


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ("imf_b2", "pmf_b16", ["iMF-B/2 (width 768, 12 blocks, patch 2, 4 channels", "is pMF-B/16", "model=imf_b2"]),
        ("pmf_l16", "imf_l2", ["pMF-L/16 (width 1024, 32 blocks, patch 16, 3 channels", "iMF-L/2", "model=pmf_l16"]),
        ("pmf_b32", "pmf_b16", ["pMF-B/32", "512 pixels wide", "is pMF-B/16", "256 pixels wide", "model=pmf_b32"]),
        ("pmf_l16", "pmf_h16", ["pMF-L/16", "is pMF-H/16", "model=pmf_l16"]),
        ("imf_m2", "imf_b2", ["iMF-M/2 (width 768, 24 blocks", "is iMF-B/2 (width 768, 12 blocks", "model=imf_m2"]),
    ],
)
def test_weights_of_another_model_are_named(wrong, right, words):
    with pytest.raises(UserError) as refusal:
        load_official(file(wrong), network(right))
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


def test_the_same_model_at_another_resolution_is_named():
    with pytest.raises(UserError, match=r"pMF-B/16 \(.* 512 pixels wide.*256 pixels wide.*data of the file's size"):
        load_official(file("pmf_b16", side=512), network("pmf_b16"))


def test_another_hidden_size_is_named_without_listing_every_weight():
    released = file("pmf_h16")
    released |= {k: v[:3413] for k, v in released.items() if ".w1." in k or ".w3." in k}
    with pytest.raises(UserError, match=r"\(3413, 1280\) instead of \(3416, 1280\).* and 90 more") as refusal:
        load_official(released, network("pmf_h16"))
    assert len(str(refusal.value)) < 1000
