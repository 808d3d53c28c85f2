"""The backbone: exact sizes and costs of every preset, how weights start, positions, heads, and its refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from common import CLASSES, CONDITIONS, SHAPE, empty_network, normal, objective, relative, rows, tiny_network, uniform

from pmf_lightning import UserError, build, compose
from pmf_lightning.config.compose import choices
from pmf_lightning.models.embedders import ScalarCondition, sinusoid
from pmf_lightning.models.layers import Linear, RMSNorm, attend, fan_in_normal
from pmf_lightning.models.positions import rotation_1d, rotation_2d
from pmf_lightning.models.vit import init_weights
from pmf_lightning.profiling.model_cost import count
from pmf_lightning.utils import rng

# data, parameters to sample, parameters to train, tokens, 10^9 multiply-adds as published
PRESETS = {
    "pmf_b4": ("imagenet64", 117_588_400, 174_274_784, 276, None),
    "pmf_b16": ("imagenet256", 118_234_240, 175_474_304, 276, 33),
    "pmf_b32": ("imagenet512", 120_300_928, 179_312_768, 276, 34),
    "pmf_b64": ("imagenet1024", 128_567_680, 194_666_624, 276, None),
    "pmf_l16": ("imagenet256", 410_320_768, 511_789_696, 276, 117),
    "pmf_l32": ("imagenet512", 412_977_280, 516_807_808, 276, 117),
    "pmf_h16": ("imagenet256", 955_508_992, 1_113_904_640, 276, 271),
    "pmf_h32": ("imagenet512", 959_050_240, 1_120_397_312, 276, 272),
    # of iMF's released files 17 width + 16 are left out: they keep the last layer of the v-head
    "imf_b2": ("imagenet256_latents", 88_948_256 - 13_072, 145_596_960, 276, 24.9),
    "imf_m2": ("imagenet256_latents", 173_921_312 - 13_072, 230_570_016, 276, 49.7),
    "imf_l2": ("imagenet256_latents", 409_071_648 - 17_424, 509_752_352, 276, 116.4),
    "imf_xl2": ("imagenet256_latents", 610_433_056 - 17_424, 711_113_760, 276, 174.6),
}


def on_meta(*overrides):
    cfg = compose(list(overrides))
    with torch.device("meta"):
        return build(cfg).network


def conditions(batch=3, dtype=torch.float64):
    numbers = {name: uniform(name, count=batch, dtype=dtype) for name in CONDITIONS if name != "label"}
    return {"label": torch.arange(batch) % (CLASSES + 1), **numbers}


def images(batch=3, dtype=torch.float64, shape=SHAPE):
    return normal("image", shape=(batch, *shape), dtype=dtype)


# Sizes and costs


def test_every_preset_is_in_the_table():
    of_no_paper = {f"imf_{size}16" for size in ("b", "m", "l", "xl")} | {"pmf_s4", "pmf_s8", "imf_s4", "imf_s8"}
    meanflow = {model for model in choices("model") if model.startswith(("pmf_", "imf_"))}
    assert {*PRESETS, *of_no_paper, "pmf_tiny", "pmf_digits", "pmf_shapes", "pmf_xs8", "imf_digits"} == meanflow


@pytest.mark.parametrize("model", PRESETS)
def test_preset(model):
    data, sampling, training, tokens, published = PRESETS[model]
    cost = count(on_meta(f"model={model}", f"data={data}"))
    assert cost.parameters == sampling
    assert cost.training_parameters == training
    assert cost.tokens == tokens
    if published:
        assert abs(cost.multiply_adds / 1e9 - published) < 0.015 * published
    assert f"{sampling:,}" in str(cost)


def test_resolution_and_patch_are_independent():
    cost = count(on_meta("model=pmf_h16", "data=imagenet512"))
    assert cost.tokens == 1024 + 20
    assert abs(cost.multiply_adds / 1e9 - 1121) < 0.015 * 1121


def test_tiny_is_the_golden_network(golden_module, official_weights):
    network = golden_module(torch.float32).network
    trained = {name: weight for name, weight in official_weights.items() if name != "rope_freqs"}
    assert sum(weight.numel() for weight in network.parameters()) == 440_640
    assert sum(weight.numel() for weight in trained.values()) == 440_640
    to_sample = sum(weight.numel() for name, weight in trained.items() if not name.startswith("v_"))
    assert count(network).parameters == to_sample


def test_cost_is_the_arithmetic_of_the_graph():
    """Multiply-adds of a tiny network by hand, matrix by matrix."""
    tokens, width, hidden, patches = 11, 16, 24, 4
    block = tokens * (4 * width * width + 3 * width * hidden) + 2 * tokens**2 * width
    embed = patches * (3 * 16 * 6 + 6 * width) + 4 * (256 * width + width * width)
    by_hand = 2 * block + embed + patches * width * 3 * 16
    assert count(empty_network()).multiply_adds == by_hand


# How weights start


def expected_std(name, shape):
    """The standard deviation of a weight's start (pMF, fact by fact); None: a constant."""
    if "gate" in name or "norm" in name or name.endswith("bias") or (".out.weight" in name and "attention" not in name):
        return None
    if name.startswith(("trunk", "heads")):
        return 0.32 / math.sqrt(shape[1])
    if name == "positions.weight":
        return 0.02
    if "tokens" in name or "table" in name:
        return 1 / math.sqrt(shape[-1])
    if "mlp_in" in name or "mlp_out" in name:
        return 1 / math.sqrt(shape[1])
    assert name.startswith("patch_embedding")
    return math.sqrt(2 / (shape[0] + math.prod(shape[1:])))  # xavier on the flattened matrix


def test_initial_weights(tiny_config):
    seen = set()
    for name, weight in build(tiny_config).network.named_parameters():
        std, weight, size = expected_std(name, weight.shape), weight.detach().double(), weight.numel()
        if std is None:
            constant = 1.0 if "norm" in name else 0.0
            assert (weight == constant).all(), name
        else:
            assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * size), name
            assert abs(weight.mean()) < 5 * std / math.sqrt(size), name
        if name.startswith("patch_embedding") and weight.ndim == 4:
            bound = math.sqrt(3) * std
            assert 0.99 * bound < weight.abs().max() <= bound * (1 + 1e-6), name
        seen.add(None if std is None else round(std, 6))
    assert len(seen) > 6


def test_weights_are_a_function_of_the_seed(tiny_config):
    first, again = build(tiny_config).network.state_dict(), build(tiny_config).network.state_dict()
    other = build(compose(["model=pmf_tiny", "data.resolution=32", "data.channels=3", "seed=1"]))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, weight in first.items() if weight.std() > 0]
    assert len(drawn) > 40
    assert not any(torch.equal(first[name], other.network.state_dict()[name]) for name in drawn)


def test_no_two_weights_share_their_numbers(tiny_config):
    weights = [w.flatten()[:8].tolist() for w in build(tiny_config).network.state_dict().values() if w.std() > 0]
    scaled = {tuple(round(value / weight[0], 4) for value in weight) for weight in weights}
    assert len(scaled) == len(weights)


def test_another_head_leaves_the_other_weights_alone():
    def started(heads):
        network = empty_network(heads=heads)
        init_weights(network, lambda name: rng.generator(0, "init", name))
        return network.state_dict()

    two, three = started({"u": 1, "v": 1}), started({"w": 2, "v": 1, "u": 1})
    assert two.keys() < three.keys()
    assert all(torch.equal(value, three[name]) for name, value in two.items())


def test_a_new_network_is_the_identity_of_nothing():
    """Gates and final layers start at zero, so every field does."""
    network = empty_network()
    init_weights(network, lambda name: rng.generator(0, "init", name))
    fields = network(images(dtype=torch.float32), conditions(dtype=torch.float32))
    assert all((field == 0).all() for field in fields.values())


# Heads


def test_a_head_can_be_left_out():
    network = tiny_network()
    both = network(images(), conditions())
    with torch.no_grad():
        for weight in network.heads["v"].parameters():
            weight.fill_(math.nan)
    alone = network(images(), conditions(), heads=("u",))
    assert list(alone) == ["u"]
    assert torch.equal(alone["u"], both["u"])
    assert network(images(), conditions())["v"].isnan().all()
    assert relative(both["u"], both["v"]) > 0.1


def test_pixels_of_a_patch_are_in_the_order_row_column_colour():
    network = tiny_network()
    out = network.heads["u"].out
    with torch.no_grad():
        out.weight.zero_()
        out.bias.copy_(torch.arange(48))
    field = network(images(1), conditions(1))["u"][0]
    for colour, row, column in np.ndindex(3, 8, 8):
        assert field[colour, row, column] == (row % 4 * 4 + column % 4) * 3 + colour


def test_every_patch_answers_in_its_own_place():
    """With the trunk and head blocks gone, a token sees its own patch alone."""
    network = tiny_network(depth=0, heads={"u": 0})
    image = images(1)
    before = network(image, conditions(1))["u"]
    image[0, :, 4:, :4] += 1
    changed = (network(image, conditions(1))["u"] != before)[0].any(0)
    assert changed[4:, :4].all()
    assert not changed[:4].any()
    assert not changed[:, 4:].any()


def test_every_condition_reaches_every_pixel():
    network = tiny_network()
    before = network(images(), conditions())["u"]
    for name in CONDITIONS:
        given = conditions()
        given[name] = given[name].roll(1) if name == "label" else given[name] + 0.3
        assert (network(images(), given)["u"] != before).all(), name


# Positions


def complex_rotation(x, grid, head_dim, theta):
    """The official form: pairs as complex numbers, times exp(i angle)."""
    quarter = head_dim // 4
    frequencies = theta ** (-2 * np.arange(quarter) / (head_dim // 2))
    row, column = np.divmod(np.arange(grid**2), grid)
    angles = np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.from_numpy(np.exp(1j * angles))).flatten(-2)


@pytest.mark.parametrize(("grid", "head_dim", "theta"), [(4, 16, 1e4), (3, 8, 100.0), (2, 20, 1e4)])
def test_rotation_equals_the_complex_formula(grid, head_dim, theta):
    prefix = 5
    x = normal("q", shape=(2, 3, prefix + grid**2, head_dim))
    turned = rotation_2d(prefix, grid, head_dim, theta, like=x)(x)
    assert torch.equal(turned[:, :, :prefix], x[:, :, :prefix])
    assert relative(turned[:, :, prefix:], complex_rotation(x[:, :, prefix:], grid, head_dim, theta)) < 1e-14
    assert not torch.equal(turned[:, :, prefix + 1 :], x[:, :, prefix + 1 :])


def test_rotation_along_the_sequence_equals_the_complex_formula():
    tokens, head_dim, theta = 7, 8, 1e4
    x = normal("q", shape=(2, 3, tokens, head_dim))
    frequencies = theta ** (-2 * np.arange(head_dim // 2) / head_dim)
    angles = torch.from_numpy(np.exp(1j * np.outer(np.arange(tokens), frequencies)))
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * angles).flatten(-2)
    assert relative(rotation_1d(tokens, head_dim, theta, like=x)(x), expected) < 1e-14


def test_without_learned_positions_places_still_count():
    network = tiny_network(positions="none", rope="sequence")
    assert not any("positions" in name for name, _ in network.named_parameters())
    image = images()
    moved = image.roll(4, dims=-1)  # by one patch
    assert relative(network(moved, conditions())["u"], network(image, conditions())["u"].roll(4, dims=-1)) > 1e-3


def test_scores_depend_on_relative_positions_alone():
    grid = 4
    rotate = rotation_2d(0, grid, 16, 100.0, like=torch.zeros(1, dtype=torch.float64))
    q, k = (rotate(normal(name, shape=(16,)).expand(1, 1, grid**2, 16))[0, 0] for name in "qk")
    scores = q @ k.T
    by_offset = {}
    for i, j in np.ndindex(16, 16):
        by_offset.setdefault((i // 4 - j // 4, i % 4 - j % 4), []).append(scores[i, j].item())
    assert all(max(values) - min(values) < 1e-12 for values in by_offset.values())
    firsts = sorted(values[0] for values in by_offset.values())
    assert min(b - a for a, b in pairwise(firsts)) > 1e-6  # and every offset counts


def test_sinusoid_by_hand():
    values = torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    waves = sinusoid(values, 8)
    for value, wave in zip(values.tolist(), waves.tolist(), strict=True):
        angles = [value * 10_000 ** (-j / 4) for j in range(4)]
        assert wave == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-14)


# Layers


def test_rms_norm_by_hand():
    norm = RMSNorm(6).double()
    with torch.no_grad():
        norm.weight.copy_(normal("weight", shape=(6,)))
    x = normal("x", shape=(4, 6))
    by_hand = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * norm.weight
    assert relative(norm(x), by_hand) < 1e-14
    assert norm(1e-3 * x).std() < 0.99 * norm(x).std()  # eps counts for small tokens


def test_plain_and_fused_attention_are_the_same():
    q, k, v = (normal(name, shape=(2, 3, 7, 8)) for name in "qkv")
    by_hand = torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5).softmax(-1), v)
    assert relative(attend(q, k, v, "plain"), by_hand) < 1e-14
    assert relative(attend(q, k, v, "fused"), by_hand) < 1e-14


def test_linear_does_not_start_by_itself():
    state = torch.get_rng_state()
    Linear(3, 4, fan_in_normal(1.0))
    assert torch.equal(torch.get_rng_state(), state)


# Other forms of the network


def test_without_bottleneck():
    network = tiny_network(bottleneck=None)
    assert network.patch_embedding.patches.weight.shape == (16, 3, 4, 4)
    assert not list(network.patch_embedding.expand.parameters())
    assert network(images(), conditions())["u"].shape == (3, *SHAPE)
    assert relative(network(images(), conditions())["u"], network(images() + 1, conditions())["u"]) > 1e-2


def test_double_is_double_everywhere():
    single, double = tiny_network(torch.float32), tiny_network(torch.float64)
    wide = double(images(), conditions())
    narrow = single(images(dtype=torch.float32), conditions(dtype=torch.float32))
    for head in ("u", "v"):
        assert wide[head].dtype == torch.float64
        assert narrow[head].dtype == torch.float32
        assert 1e-9 < relative(narrow[head], wide[head]) < 1e-5
    assert all(tensor.dtype == torch.float64 for tensor in double.state_dict().values())


def test_plain_attention_has_scores_in_float32_under_autocast():
    """A score of 40 has steps of 0.25 in bfloat16, which would change its weight by a quarter."""
    q, k = (12 * torch.randn(1, 1, 6, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    v = torch.eye(6)[None, None]
    expected = (q.double() @ k.double().transpose(-1, -2) / 2**0.5).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        weights = attend(q, k, v, "plain")
    assert (weights - expected).abs().max() < 2**-8  # the product with v is in bfloat16


def test_bfloat16_autocast_runs_on_a_cpu():
    network = tiny_network(torch.float32)
    exact = network(images(dtype=torch.float32), conditions(dtype=torch.float32))["u"]
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images(dtype=torch.float32), conditions(dtype=torch.float32))["u"]
    assert 1e-5 < relative(half, exact) < 0.05


def test_neighbouring_times_differ_even_in_half_precision():
    """A sinusoid of bfloat16 numbers would confuse 0.801 and 0.802."""
    embed = ScalarCondition(1, 16)
    init_weights(embed, lambda name: rng.generator(0, name))
    near = embed.bfloat16()(torch.tensor([0.8010, 0.8020]))
    assert torch.tensor(0.8010, dtype=torch.bfloat16) == torch.tensor(0.8020, dtype=torch.bfloat16)
    assert not torch.equal(near[0], near[1])


def test_norm_of_half_precision_tokens_is_taken_in_float32():
    norm = RMSNorm(64)
    torch.nn.init.ones_(norm.weight)
    x = 300 * normal("x", shape=(1, 64), dtype=torch.float16)
    assert norm(x).dtype == torch.float16
    assert relative(norm(x), norm(x.float())) < 1e-3  # squares of 300 overflow float16


# Refusals


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="resolution 10 is not divisible by patch 4"):
        empty_network(resolution=10)
    with pytest.raises(ValueError, match="width 16 does not split into 3 heads"):
        empty_network(num_heads=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        empty_network(width=12)
    with pytest.raises(UserError, match=r"data\.resolution=36 is not divisible by backbone\.patch=8"):
        build(compose(["model=pmf_tiny", "data.resolution=36"]))


def test_objective_runs_on_a_network_of_more_heads():
    network = tiny_network(heads={"u": 1, "v": 1, "w": 1})
    batch, numbers = rows()
    objective()(network, batch, numbers).total.backward()
    assert all(weight.grad is None for weight in network.heads["w"].parameters())
