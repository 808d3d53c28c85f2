"""Drifting's own generator against the official code's numbers and a second writing of its forward pass in float64."""

import math

import numpy as np
import pytest
import torch
from common import normal, relative, uniform
from conftest import _load
from test_jit_network import positions, rms, silu, softmax

from pmf_lightning import QueueBatch, build, compose, generate, image_noise
from pmf_lightning.config.presets import published
from pmf_lightning.config.row_tables import without_table
from pmf_lightning.encoders.drifting.extractor import DriftFeatures
from pmf_lightning.models.drifting_vit import DriftingViT
from pmf_lightning.models.vit import ViT, init_weights
from pmf_lightning.optim.optimizers import parameter_groups
from pmf_lightning.profiling.model_cost import count
from pmf_lightning.utils import rng
from pmf_lightning.utils.hydra_compat import instantiate
from pmf_lightning.weights.drifting import generator_tensors

CLASSES, CODES, ROWS, CONTEXT, GRID, PATCH, WIDTH, HEADS, HIDDEN, BLOCKS = 7, 5, 4, 3, 3, 4, 24, 2, 64, 2
# The sizes of drift_generator.npz.
TINY = {
    **{"resolution": GRID * PATCH, "channels": 3, "patch": PATCH, "width": WIDTH, "num_heads": HEADS},
    **{"mlp_dim": HIDDEN, "depth": BLOCKS, "classes": CLASSES, "context": CONTEXT, "codes": CODES, "rows": ROWS},
    **{"rope_theta": 1e4, "attention": "plain"},
}
# What the overrides of a preset make it small.
SMALL = [
    *("data=digits", "drift_features=raw", "backbone.patch=8", "backbone.width=32", "backbone.num_heads=2"),
    *("backbone.mlp_dim=64", "backbone.depth=2", "backbone.context=3", "objective.style_codes=3", "batch=128"),
]


@pytest.fixture(scope="module")
def golden():
    return _load("drift_generator.npz")


@pytest.fixture(scope="module")
def arrays(golden):
    """The weights under official names, in flax's layout."""
    return {name.removeprefix("w/"): value for name, value in golden.items() if name.startswith("w/")}


@pytest.fixture
def network(arrays):
    return loaded(arrays)


def empty_network(**changes) -> DriftingViT:
    return DriftingViT(**{**TINY, **changes})


def loaded(arrays, dtype=torch.float64):
    made = empty_network()
    made.load_state_dict(generator_tensors(arrays, made))
    return made.to(dtype)


def inputs(golden, dtype=torch.float64):
    conditions = {"label": golden["label"], "alpha": golden["alpha"].to(dtype), "style": golden["style"]}
    return golden["x"].to(dtype), conditions


# The forward pass a second time, with loops over heads, tokens and pairs, from the official names


def turned(x):
    """RoPE of x [tokens, head_dim]: the pairs (i, i + head_dim / 2), by the place of the token."""
    half, out = x.shape[1] // 2, x.copy()
    for token in range(len(x)):
        for i in range(half):
            angle = token * 10_000 ** (-i / half)
            a, b = x[token, i], x[token, i + half]
            out[token, i] = a * math.cos(angle) - b * math.sin(angle)
            out[token, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def by_hand(arrays, image, label, alpha, style):
    """One image [C,H,W] through the network; returns the condition and the image."""
    w = {name: value.double().numpy() for name, value in arrays.items()}

    def linear(name, x):
        return x @ w[f"{name}/Dense_0/kernel"] + w[f"{name}/Dense_0/bias"]

    image = image.double().numpy()
    waves = alpha * 10_000 ** (-np.arange(128) / 128)
    waves = np.concatenate((np.cos(waves), np.sin(waves)))
    strength = linear("TimestepEmbedder_0/TorchLinear_1", silu(linear("TimestepEmbedder_0/TorchLinear_0", waves)))
    c = w["Embed_0/embedding"][label] + 0.02 * rms(strength, w["RMSNorm_0/weight"])
    for i, code in enumerate(style):
        c = c + w[f"noise_embeds_{i}/embedding"][code]

    at, p = "LightningDiT_0", PATCH
    corners = [(row * p, column * p) for row in range(GRID) for column in range(GRID)]
    pieces = np.stack([image[:, y : y + p, x : x + p].transpose(1, 2, 0).reshape(-1) for y, x in corners])
    patches = linear(f"{at}/TorchLinear_0", pieces) + w[f"{at}/pos_embed"][0]
    x = np.concatenate((linear(f"{at}/TorchLinear_1", c) + w[f"{at}/cls_embed"][0], patches))

    for i in range(BLOCKS):
        block = f"{at}/blocks_{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(f"{block}/TorchLinear_0", silu(c)), 6)
        seen = rms(x, w[f"{block}/RMSNorm_0/weight"]) * (1 + scale1) + shift1
        q, k, v = np.split(linear(f"{block}/Attention_0/TorchLinear_0", seen), 3, axis=1)
        mixed = []
        for head in np.split(np.arange(WIDTH), HEADS):
            a = turned(rms(q[:, head], w[f"{block}/Attention_0/q_norm/weight"]))
            b = turned(rms(k[:, head], w[f"{block}/Attention_0/k_norm/weight"]))
            mixed.append(softmax(a @ b.T / math.sqrt(len(head))) @ v[:, head])
        x = x + gate1 * linear(f"{block}/Attention_0/TorchLinear_1", np.concatenate(mixed, axis=1))
        seen = rms(x, w[f"{block}/RMSNorm_1/weight"]) * (1 + scale2) + shift2
        first, second = (linear(f"{block}/SwiGLUFFN_0/TorchLinear_{j}", seen) for j in (0, 1))
        x = x + gate2 * linear(f"{block}/SwiGLUFFN_0/TorchLinear_2", silu(first) * second)

    shift, scale = np.split(linear(f"{at}/FinalLayer_0/TorchLinear_0", silu(c)), 2)
    x = rms(x[CONTEXT:], w[f"{at}/FinalLayer_0/RMSNorm_0/weight"]) * (1 + scale) + shift
    x = linear(f"{at}/FinalLayer_0/TorchLinear_1", x)
    out = np.zeros_like(image)
    for token, (row, column) in enumerate(corners):
        out[:, row : row + p, column : column + p] = x[token].reshape(p, p, -1).transpose(2, 0, 1)
    return torch.from_numpy(c), torch.from_numpy(out)


def test_forward_is_that_of_the_official_code_and_of_the_second_writing(golden, arrays, network):
    image, conditions = inputs(golden)
    with torch.no_grad():
        c = network.condition(conditions)
        found = {kind: network(image, conditions, attention=kind)["u"] for kind in ("plain", "fused")}
    for i in range(len(image)):
        alpha, style = golden["alpha"][i].item(), golden["style"][i].tolist()
        condition, out = by_hand(arrays, golden["x"][i], golden["label"][i].item(), alpha, style)
        assert relative(condition, golden["condition"][i]) < 1e-6
        assert relative(out, golden["out"][i]) < 1e-6
        assert relative(c[i], condition) < 1e-12
        for kind in ("plain", "fused"):
            assert relative(found[kind][i], out) < 1e-12


def test_single_precision_is_the_official_one(golden, arrays):
    image, conditions = inputs(golden, torch.float32)
    with torch.no_grad():
        out = loaded(arrays, torch.float32)(image, conditions)["u"]
    assert out.dtype == torch.float32
    assert relative(out, golden["out"]) < 2e-6


def test_half_precision_stays_half(golden, arrays):
    image, conditions = inputs(golden, torch.bfloat16)
    with torch.no_grad():
        half = loaded(arrays, torch.bfloat16)(image, conditions)["u"]
    assert half.dtype == torch.bfloat16
    assert relative(half, golden["out"]) < 0.1


@pytest.mark.parametrize("part", ["image", "label", "alpha", "style"])
def test_every_input_matters(part, golden, network):
    image, conditions = inputs(golden)
    before = network(image, conditions)["u"]
    if part == "image":
        image = image + 0.1
    elif part == "alpha":
        conditions["alpha"] = conditions["alpha"] + 1
    elif part == "label":
        conditions["label"] = (conditions["label"] + 1) % CLASSES
    else:
        conditions["style"] = conditions["style"].flip(1)  # the same codes in other places
    assert relative(network(image, conditions)["u"], before) > 1e-4


def test_other_conditions_are_ignored_and_rows_are_independent(golden, network):
    image, conditions = inputs(golden)
    whole = network(image, conditions)["u"]
    more = {**conditions, "t": torch.full((3,), torch.nan, dtype=torch.float64)}
    assert torch.equal(network(image, more, heads=("u",))["u"], whole)
    alone = network(image[1:2], {name: value[1:2] for name, value in conditions.items()})["u"]
    assert relative(alone[0], whole[1]) < 1e-12


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
    made = build(compose(["model=drifting_b16", *SMALL])).network
    assert isinstance(made, DriftingViT)
    weights = dict(made.named_parameters())
    start = torch.from_numpy(positions(4, 32)).float()
    assert (weights.pop("positions.weight")[0] - start).abs().max() < 1e-6
    kinds = set()
    for name, weight in weights.items():
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


def test_a_fresh_network_answers_zero_and_learns_everywhere(golden, network):
    """At the start only the last Linear has a gradient; once nothing is zero, everything has one."""
    fresh = empty_network()
    init_weights(fresh, lambda name: rng.generator("tests", name))
    out = fresh(*inputs(golden, torch.float32))["u"]
    assert not out.any()
    (out - 1).square().sum().backward()
    assert {name for name, w in fresh.named_parameters() if w.grad.any()} == {"heads.u.out.weight", "heads.u.out.bias"}
    network(*inputs(golden))["u"].square().sum().backward()
    assert [name for name, weight in network.named_parameters() if not weight.grad.any()] == []


def test_weights_are_a_function_of_their_generators():
    def start(seed, **changes):
        made = empty_network(**changes)
        init_weights(made, lambda name: rng.generator(seed, name))
        return made.state_dict()

    first, again, other = start(0), start(0), start(1)
    shorter = start(0, depth=1, codes=0)
    constant = {n for n, w in first.items() if expected_start(n, w.shape)[0] == "constant"} | {"positions.weight"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first.keys() - constant)
    assert all(torch.equal(first[name], value) for name, value in shorter.items())


def test_matrices_are_tagged_for_muon():
    made = empty_network()
    names = {weight: name for name, weight in made.named_parameters()}
    kinds = {group["kind"]: {names[weight] for weight in group["params"]} for group in parameter_groups(made)}
    assert {"trunk.0.attention.qkv.weight", "trunk.1.mlp.w3.weight", "to_context.weight"} < kinds["muon"]
    tables = {f"conditions.{name}.table.weight" for name in ("label", "style")}
    assert tables | {"context.weight", "positions.weight", "patch_embedding.patches.weight"} < kinds["adam"]
    assert all(name.endswith(".weight") and "norm" not in name for name in kinds["muon"])
    assert kinds["muon"] | kinds["adam"] == set(names.values())


# Sizes, choices and refusals


def test_cost_is_the_arithmetic_of_the_graph():
    patches, tokens, numbers = GRID**2, GRID**2 + CONTEXT, 3 * PATCH**2
    block = tokens * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + 2 * tokens**2 * WIDTH + 6 * WIDTH**2
    ends = 2 * patches * numbers * WIDTH + 2 * WIDTH**2
    condition = 256 * WIDTH + WIDTH**2 + WIDTH**2  # alpha's two maps, and that to the tokens
    cost = count(empty_network())
    assert cost.multiply_adds == BLOCKS * block + ends + condition
    assert cost.tokens == empty_network().tokens == tokens
    assert cost.parameters == cost.training_parameters == sum(w.numel() for w in empty_network().parameters())


def test_without_styles_and_context(golden):
    image, conditions = inputs(golden, torch.float32)
    made = empty_network(codes=0, rows=0, context=0)
    init_weights(made, lambda name: rng.generator("tests", name))
    assert (made.prefix, made.tokens, made.context, made.to_context) == (0, GRID**2, None, None)
    assert set(made.conditions) == {"label", "alpha"}
    conditions["style"] = conditions["style"][:, :0]
    assert made(image, conditions)["u"].shape == image.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 13}, "resolution 13 is not divisible by patch 4"),
        ({"width": 26, "num_heads": 1}, "width 26 is no multiple of 4, which"),
        ({"num_heads": 8}, "width 24 does not split into 8 heads of a multiple of 2 channels"),
        ({"rows": 0}, "context 3, codes 5, rows 0: context and codes must be 0 or more, and rows 1 or"),
        ({"context": -1}, "context -1, codes 5"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        empty_network(**changes)


# data; parameters in millions; 10^9 multiply-adds where the paper tells them (87 for L/16); lr, steps of warm-up,
# weight decay, steps, positives of a label, alpha's power and share of ones; features; new images queued in a step on
# each of 32 hosts, and the best guidance, both of the official README
PRESETS = {
    "drifting_b16": ("imagenet256", 133.86, None, (2e-4, 10_000, 0.01, 100_000, 128, 5, 0), "convnext", 128, 1),
    "drifting_l16": ("imagenet256", 464.45, 86.8, (4e-4, 10_000, 0.01, 100_000, 128, 5, 0), "convnext", 128, 1),
    "drifting_b2": ("imagenet256_latents_scaled", 132.71, None, (4e-4, 10_000, 0, 200_000, 64, 5, 0), "path", 128, 1.1),
    "drifting_l2": (
        "imagenet256_latents_scaled",
        462.91,
        None,
        (4e-4, 10_000, 0.01, 200_000, 64, 3, 0.5),
        "path",
        64,
        1,
    ),
}


@pytest.mark.parametrize("model", PRESETS)
def test_preset(model):
    data, millions, adds, row, feature, push, omega = PRESETS[model]
    cfg = compose([f"model={model}", f"data={data}"])
    objective, optimizer = cfg.objective, cfg.optimizer
    found = (optimizer.lr, round(cfg.schedule.warmup_fraction * cfg.steps), optimizer.weight_decay, cfg.steps)
    assert (*found, cfg.queues.positives, objective.alpha_power, objective.unguided_fraction) == row
    assert (cfg.name, cfg.batch, objective.samples_per_label, cfg.queues.negatives) == (model, 128 * 64, 64, 32)
    assert (cfg.schedule.decay_fraction, cfg.trainer.gradient_clip_val, list(optimizer.betas)) == (0, 2, [0.9, 0.95])
    assert feature in cfg.drift_features
    assert (cfg.queues.push_per_step, cfg.sampling.omega) == (32 * push, omega)
    assert list(cfg.search.omega) == [1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5]  # cfg_list
    assert cfg.schedule.start == 1e-6
    with torch.device("meta"):
        made = instantiate(without_table(cfg, "backbone"), _convert_="all")
    parameters = sum(weight.numel() for weight in made.parameters())
    assert (made.tokens, made.grid, made.prefix) == (272, 16, 16)
    assert parameters == published()[model].parameters == published()[model].training_parameters
    assert round(parameters / 1e6, 2) == millions
    if adds:
        assert round(count(made).multiply_adds / 1e9, 1) == adds


def test_the_shared_backbone_serves_too():
    shared = build(compose(["model=drifting_b16", "backbone=vit", "data=imagenet256"]), empty=True).network
    assert isinstance(shared, ViT)
    assert (shared.patch, set(shared.conditions)) == (16, {"label", "alpha", "style"})


def test_a_training_step_and_a_sample():
    module = build(compose(["model=drifting_b16", *SMALL, "objective.samples_per_label=4"]))
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            weight.add_(0.05 * normal("step", name, shape=tuple(weight.shape), dtype=torch.float32))
    images = uniform("x", count=2 * 5 * 32 * 32, low=-1, dtype=torch.float32).view(2, 5, 1, 32, 32)
    batch = QueueBatch(images[:, :3], torch.tensor([3, 8]), images[:, 3:])
    step = module.objective.draw(batch, seed=0, step=0)
    assert step.style.shape == (2, 4, 3)
    module.objective(module.network, batch, step, DriftFeatures()).total.backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in module.network.parameters())
    noise, conditions = image_noise(0, 0, 2, (1, 32, 32)), module.objective.sampling_conditions(0, 0, 2)
    made = generate(module, noise, torch.tensor([3, 1]), steps=1, omega=1.5, conditions=conditions)
    assert made.shape == noise.shape
    assert made.isfinite().all()
    other = generate(module, noise, torch.tensor([3, 1]), steps=1, omega=3.0, conditions=conditions)
    assert relative(other, made) > 1e-4
