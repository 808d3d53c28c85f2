"""JiT's own network against a second writing of its forward pass in float64; how it starts, dropout, refusals."""

import math

import numpy as np
import pytest
import torch
from common import normal, relative, uniform

from pmf_lightning import Batch, build, compose, generate, image_noise
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.models.dropout import keep_mask
from pmf_lightning.models.jit_vit import JiTViT
from pmf_lightning.models.vit import ViT, init_weights
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.profiling.model_cost import count
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate

CLASSES, CONTEXT, GRID, PATCH, WIDTH, HEADS, HIDDEN, BLOCKS, START = 5, 3, 3, 2, 24, 2, 20, 8, 3
TINY = {
    **{"resolution": GRID * PATCH, "channels": 3, "patch": PATCH, "width": WIDTH, "num_heads": HEADS},
    **{"mlp_dim": HIDDEN, "depth": BLOCKS, "classes": CLASSES, "bottleneck": 7, "context": CONTEXT},
    **{"context_start": START, "dropout": 0.0, "attention_dropout": 0.0, "rope_theta": 1e4, "attention": "plain"},
}
# What the overrides of a preset make it small.
SMALL = [
    *("backbone.width=32", "backbone.num_heads=2", "backbone.mlp_dim=48", "backbone.depth=4"),
    *("backbone.context_start=1", "backbone.bottleneck=8"),
]


def empty_network(**changes) -> JiTViT:
    return JiTViT(**{**TINY, **changes})


def network(dtype=torch.float64, **changes):
    """A network of random weights, none of them zero or one."""
    made = empty_network(**changes)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3
            weight.copy_(scale * normal(name, shape=tuple(weight.shape)) + ("norm" in name))
    return made.to(dtype)


def inputs(batch=4, dtype=torch.float64, channels=3, side=GRID * PATCH):
    image = normal("image", shape=(batch, channels, side, side), dtype=dtype)
    return image, {"label": torch.arange(batch) % (CLASSES + 1), "t": uniform("t", count=batch, dtype=dtype)}


# The forward pass a second time, with loops over heads, tokens and pairs, from the state dict


def rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def positions(grid, width):
    """MAE: column first, [sin, cos] in each half."""
    table = np.zeros((grid * grid, width))
    for row in range(grid):
        for column in range(grid):
            for half, place in enumerate((column, row)):
                for j in range(width // 4):
                    angle = place / 10_000 ** (j / (width / 4))
                    table[row * grid + column, half * width // 2 + j] = math.sin(angle)
                    table[row * grid + column, half * width // 2 + width // 4 + j] = math.cos(angle)
    return table


def turned(x, grid, prefix):
    """RoPE of x [tokens, head_dim]: neighbouring pairs, the first half of them by the row, the second by the column."""
    x, size = x.copy(), x.shape[1]
    for token in range(prefix, len(x)):
        row, column = divmod(token - prefix, grid)
        for pair in range(size // 2):
            place, i = (row, pair) if pair < size // 4 else (column, pair - size // 4)
            angle = place * 10_000 ** (-2 * i / (size / 2))
            a, b = x[token, 2 * pair], x[token, 2 * pair + 1]
            x[token, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            x[token, 2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
    return x


def by_hand(weights, image, label, t, heads=HEADS, context=CONTEXT, start=START, blocks=BLOCKS):
    """One image through the network; ``t`` is the share of noise."""
    w = {name: value.double().numpy() for name, value in weights.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    image = image.numpy()
    channels, patch = image.shape[0], w["patch_embedding.patches.weight"].shape[-1]
    grid, width = image.shape[1] // patch, w["patch_embedding.expand.bias"].shape[0]

    tokens = []
    for row in range(grid):
        for column in range(grid):
            piece = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(w["patch_embedding.patches.weight"].reshape(-1, piece.size) @ piece.reshape(-1))
    expand = w["patch_embedding.expand.weight"][:, :, 0, 0]
    x = np.stack(tokens) @ expand.T + w["patch_embedding.expand.bias"] + positions(grid, width)

    data = 1 - t
    frequencies = 10_000 ** (-np.arange(128) / 128)
    waves = np.concatenate((np.cos(data * frequencies), np.sin(data * frequencies)))
    y = w["conditions.label.table.weight"][label]
    c = linear("conditions.t.mlp_out", silu(linear("conditions.t.mlp_in", waves))) + y

    prefix = 0
    for i in range(blocks):
        if i == start:
            x, prefix = np.concatenate((y + w["context.weight"][0], x)), context
        at = f"trunk.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(f"{at}.modulation", silu(c)), 6)
        seen = rms(x, w[f"{at}.attention_norm.weight"]) * (1 + scale1) + shift1
        q, k, v = np.split(linear(f"{at}.attention.qkv", seen), 3, axis=1)
        mixed = []
        for head in np.split(np.arange(width), heads):
            a = turned(rms(q[:, head], w[f"{at}.attention.q_norm.weight"]), grid, prefix)
            b = turned(rms(k[:, head], w[f"{at}.attention.k_norm.weight"]), grid, prefix)
            mixed.append(softmax(a @ b.T / math.sqrt(len(head))) @ v[:, head])
        x = x + gate1 * linear(f"{at}.attention.proj", np.concatenate(mixed, axis=1))
        seen = rms(x, w[f"{at}.mlp_norm.weight"]) * (1 + scale2) + shift2
        first, second = np.split(linear(f"{at}.mlp.w12", seen), 2, axis=1)
        x = x + gate2 * linear(f"{at}.mlp.w3", silu(first) * second)

    x = x[prefix:]
    shift, scale = np.split(linear("heads.u.modulation", silu(c)), 2)
    x = linear("heads.u.out", rms(x, w["heads.u.norm.weight"]) * (1 + scale) + shift)
    out = np.zeros_like(image)
    for token in range(grid * grid):
        row, column = divmod(token, grid)
        for i in range(patch):
            for j in range(patch):
                for colour in range(channels):
                    out[colour, row * patch + i, column * patch + j] = x[token, (i * patch + j) * channels + colour]
    return torch.from_numpy(out)


@pytest.mark.parametrize("start", [0, START, BLOCKS - 1])
def test_forward_is_that_of_the_second_writing(start):
    made, (image, conditions) = network(context_start=start), inputs()
    for attention in ("plain", "fused"):
        with torch.no_grad():
            out = made(image, conditions, attention=attention)
        assert out.keys() == {"u"}
        for i in range(len(image)):
            t = conditions["t"][i].item()
            expected = by_hand(made.state_dict(), image[i], conditions["label"][i].item(), t, start=start)
            assert relative(out["u"][i], expected) < 1e-12


@pytest.mark.parametrize("part", ["t", "label", "image"])
def test_every_input_matters(part):
    made, (image, conditions) = network(), inputs()
    before = made(image, conditions)["u"]
    if part == "image":
        image = image + 0.1
    else:
        conditions[part] = (conditions[part] + 1) % CLASSES if part == "label" else conditions[part] / 2
    assert relative(made(image, conditions)["u"], before) > 1e-2


def test_other_conditions_are_ignored_and_heads_chosen():
    made, (image, conditions) = network(), inputs()
    more = {**conditions, "omega": uniform("omega", count=4), "h": torch.full((4,), torch.nan, dtype=torch.float64)}
    assert torch.equal(made(image, more, heads=("u",))["u"], made(image, conditions)["u"])
    assert made(image, conditions, heads=None).keys() == {"u"}


def test_a_row_does_not_depend_on_its_batch():
    made, (image, conditions) = network(dropout=0.3), inputs()
    conditions["dropout"] = torch.tensor([rng.key("row", i) for i in range(4)])
    whole, alone = made(image, conditions)["u"], made(image[2:3], {n: v[2:3] for n, v in conditions.items()})["u"]
    assert relative(alone[0], whole[2]) < 1e-12


def test_half_precision_stays_half():
    made, (image, conditions) = network(torch.bfloat16), inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        half = made(image, conditions)["u"]
        whole = network(torch.float32)(image.float(), {**conditions, "t": conditions["t"].float()})["u"]
    assert half.dtype == torch.bfloat16
    assert relative(half, whole) < 0.1


# Dropout


def test_dropout_is_asked_for_by_keys_alone():
    made, (image, conditions) = network(dropout=0.2), inputs()
    plain = network()(image, conditions)["u"]
    for mode in (True, False):
        assert torch.equal(made.train(mode)(image, conditions)["u"], plain)
    keys = torch.tensor([rng.key("row", i) for i in range(4)])
    dropped = made.eval()(image, {**conditions, "dropout": keys})["u"]
    assert relative(dropped, plain) > 1e-2
    assert torch.equal(made.train()(image, {**conditions, "dropout": keys})["u"], dropped)
    assert relative(made(image, {**conditions, "dropout": keys + 1})["u"], dropped) > 1e-2
    assert torch.equal(network()(image, {**conditions, "dropout": keys})["u"], plain)


def test_dropout_is_in_the_middle_half_of_the_blocks():
    """depth//4 <= i < 3 (depth//4): of 8 blocks 2 to 5, of 10 blocks 2 to 5, of 40 blocks 10 to 29."""
    for blocks, middle in ((8, range(2, 6)), (10, range(2, 6)), (40, range(10, 30)), (3, range(0))):
        with torch.device("meta"):
            made = empty_network(depth=blocks, context_start=1, dropout=0.2, attention_dropout=0.1)
        for i, block in enumerate(made.trunk):
            rates = (block.attention.dropout, block.mlp.dropout, block.attention.attention_dropout)
            assert rates == ((0.2, 0.2, 0.1) if i in middle else (0, 0, 0))
        assert len({block.site for block in made.trunk}) == blocks


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
def test_what_is_dropped_in_a_block(attention_dropout, monkeypatch):
    """After the projection of attention and before w3, each by a mask of its own; attention weights where asked."""
    block = network(dropout=0.2, attention_dropout=attention_dropout).trunk[3]
    x, c, keys = normal("x", shape=(2, 5, WIDTH)), normal("c", shape=(2, WIDTH)), torch.tensor([11, 12])
    weights = {name: value.detach() for name, value in block.state_dict().items()}

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weights[f"{name}.weight"]

    def drop(x, site, rate):
        return x * keep_mask(keys, site, x[0].numel(), rate).view(x.shape) / (1 - rate) if rate else x

    sites = [3 * 3 + i for i in range(3)]
    shift1, scale1, gate1, shift2, scale2, gate2 = linear("modulation", torch.nn.functional.silu(c))[:, None].chunk(
        6, -1
    )
    q, k, v = linear("attention.qkv", norm("attention_norm", x) * (1 + scale1) + shift1).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    q, k = norm("attention.q_norm", q), norm("attention.k_norm", k)
    shares = drop((q @ k.mT / math.sqrt(WIDTH // HEADS)).softmax(-1), sites[0], attention_dropout)
    out = linear("attention.proj", (shares @ v).transpose(1, 2).flatten(2))
    expected = x + gate1 * drop(out, sites[1], 0.2)
    a, b = linear("mlp.w12", norm("mlp_norm", expected) * (1 + scale2) + shift2).chunk(2, -1)
    hidden = drop(torch.nn.functional.silu(a) * b, sites[2], 0.2)
    expected = expected + gate2 * linear("mlp.w3", hidden)
    for kind in ("plain", "fused"):
        with torch.no_grad():
            assert relative(block(x, c, lambda x: x, kind, keys), expected) < 1e-12


# How weights start


def expected_start(name, shape):
    """("constant", value), ("normal", std) or ("uniform", bound) of a weight's start, as the official code has it."""
    if "norm" in name:
        return "constant", 1.0
    if name.endswith("bias") or "modulation" in name or name.startswith("heads.u.out"):
        return "constant", 0.0
    if name.startswith("conditions") or name == "context.weight":
        return "normal", 0.02
    rows, *columns = shape
    return "uniform", math.sqrt(6 / (rows + math.prod(columns)))


def test_initial_weights():
    made = build(compose(["model=jit_b16", "data=digits", "data.resolution=64", *SMALL])).network
    kinds = set()
    for name, weight in made.named_parameters():
        (kind, number), weight, size = expected_start(name, weight.shape), weight.detach().double(), weight.numel()
        kinds.add(kind)
        if kind == "constant":
            assert (weight == number).all(), name
            continue
        std = number if kind == "normal" else number / math.sqrt(3)
        assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * size), name
        assert abs(weight.mean()) < 5 * std / math.sqrt(size), name
        if kind == "uniform":
            assert 0.95 * number < weight.abs().max() <= number * (1 + 1e-6), name
        else:
            assert weight.abs().max() > 2 * std, name
    assert kinds == {"constant", "normal", "uniform"}


def test_a_fresh_network_answers_zero_and_learns_everywhere():
    """At the start only the last Linear has a gradient; once nothing is zero, everything has one."""
    fresh, (image, conditions) = empty_network(), inputs(dtype=torch.float32)
    init_weights(fresh, lambda name: rng.generator("tests", name))
    out = fresh(image, conditions)["u"]
    assert not out.any()
    (out - 1).square().sum().backward()
    assert {name for name, w in fresh.named_parameters() if w.grad.any()} == {"heads.u.out.weight", "heads.u.out.bias"}
    made = network()
    image, conditions = inputs()
    made(image, conditions)["u"].square().sum().backward()
    assert [name for name, weight in made.named_parameters() if not weight.grad.any()] == []


def test_weights_are_a_function_of_the_seed():
    def weights(*changes):
        return build(compose(["model=jit_b16", "data=digits", *SMALL, *changes])).network.state_dict()

    first, again, other = weights(), weights(), weights("seed=1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[n], other[n]) for n in first if expected_start(n, first[n].shape)[0] != "constant")


def test_matrices_are_tagged_for_muon():
    made = empty_network()
    names = {weight: name for name, weight in made.named_parameters()}
    kinds = {group["kind"]: {names[weight] for weight in group["params"]} for group in parameter_groups(made)}
    assert "trunk.0.attention.qkv.weight" in kinds["muon"]
    assert "trunk.0.modulation.weight" in kinds["muon"]
    adam = {"conditions.label.table.weight", "context.weight", "patch_embedding.patches.weight"}
    assert adam < kinds["adam"]
    assert all(name.endswith(".weight") and "norm" not in name and "conv" not in name for name in kinds["muon"])
    assert kinds["muon"] | kinds["adam"] == set(names.values())


# Sizes, choices and refusals


def test_cost_is_the_arithmetic_of_the_graph():
    """Multiply-adds by hand: blocks before the class tokens see fewer tokens."""
    patches, width, hidden, channels = GRID**2, WIDTH, HIDDEN, 3

    def block(tokens):
        return tokens * (4 * width**2 + 3 * width * hidden) + 2 * tokens**2 * width + 6 * width**2

    embed = patches * (channels * PATCH**2 * 7 + 7 * width) + 256 * width + width**2
    final = 2 * width**2 + patches * width * channels * PATCH**2
    cost = count(empty_network())
    whole = START * block(patches) + (BLOCKS - START) * block(patches + CONTEXT)
    assert cost.multiply_adds == whole + embed + final
    assert cost.tokens == empty_network().tokens == patches + CONTEXT
    assert cost.parameters == cost.training_parameters == sum(w.numel() for w in empty_network().parameters())


def test_without_class_tokens_or_bottleneck():
    image, conditions = inputs()
    plain = network(context=0)
    assert (plain.prefix, plain.tokens, plain.context) == (0, GRID**2, None)
    assert plain(image, conditions)["u"].shape == image.shape
    one = network(bottleneck=None)
    assert one.patch_embedding.patches.bias is not None
    assert network().patch_embedding.patches.bias is None
    assert one(image, conditions)["u"].shape == image.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 7}, "resolution 7 is not divisible by patch 2"),
        ({"num_heads": 5}, "width 24 does not split into 5 heads of a multiple of 4 channels"),
        ({"num_heads": 4}, "width 24 does not split into 4 heads of a multiple of 4 channels"),
        ({"context_start": 8}, "context_start 8 is no block of 8: give 0 to 7"),
        ({"context_start": -1}, "context_start -1 is no block of 8"),
        ({"dropout": 1.0}, r"dropout 1.0 is not in \[0, 1\)"),
        ({"attention_dropout": -0.5}, r"attention_dropout -0.5 is not in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        empty_network(**changes)


# omega of each preset; parameters and costs are in tests/weights/test_official_jit.py
PRESETS = {
    **{"jit_b16": 3.0, "jit_b32": 3.0, "jit_b64": 3.0, "jit_l16": 2.4, "jit_l32": 2.5},
    **{"jit_h16": 2.2, "jit_h32": 2.3, "jit_g16": 2.2, "jit_g32": 2.3},
}


@pytest.mark.parametrize("model", PRESETS)
def test_preset(model):
    patch = int(model[5:])
    cfg = compose([f"model={model}", f"data.resolution={16 * patch}", "data.channels=3"])
    assert (cfg.name, cfg.sampling.omega, cfg.objective.noise_scale) == (model, PRESETS[model], patch / 16)
    with torch.device("meta"):
        made = instantiate(without_table(cfg, "backbone"), _convert_="all")
    assert (made.tokens, made.grid, made.prefix) == (288, 16, 32)
    assert made.context_start == {"b": 4, "l": 8, "h": 10, "g": 10}[model[4]]
    rates = {block.attention.dropout for block in made.trunk}
    assert rates == ({0, 0.2} if model[4] in "hg" else {0})


def test_the_shared_backbone_serves_too():
    shared = build(compose(["model=jit_b16", "backbone=vit", "data=imagenet256"]), empty=True).network
    assert isinstance(shared, ViT)
    assert (shared.patch, set(shared.conditions)) == (16, {"label", "t"})


def test_a_training_step_and_a_sample():
    """Through the objective: dropout keys arrive, losses differ by them, and images come out."""
    changes = ["model=jit_h16", "data=digits", "backbone.patch=8", "backbone.context=4", *SMALL]
    module = build(compose(changes))
    with torch.no_grad():
        for weight in module.network.parameters():
            weight.add_(0.05 * normal("step", shape=tuple(weight.shape), dtype=torch.float32))
    side = module.network.resolution
    batch = Batch(normal("x", shape=(6, 1, side, side), dtype=torch.float32).clamp(-1, 1), torch.arange(6))
    step = module.objective.draw(batch, seed=0, step=0)
    loss = module.objective(module.network, batch, step).total
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.network.parameters())
    without = build(compose([*changes, "backbone.dropout=0.0"]))
    without.network.load_state_dict(module.network.state_dict())
    assert without.objective(without.network, batch, step).total != loss
    noise = image_noise(0, 0, 2, (1, side, side))
    images = generate(module, noise, torch.tensor([3, 1]), steps=2, omega=1.5)
    assert images.shape == noise.shape
    assert images.isfinite().all()
