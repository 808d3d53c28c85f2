"""Files of FD-loss and RDM: tiny pMF, iMF and JiT have the images and gradients of the official code."""

import pytest
import torch
from common import normal, relative
from conftest import _load
from test_official_jit import TINY

from pmf_lightning import UserError, build, compose, load_official, official_weights
from pmf_lightning.models.jit_vit import JiTViT
from pmf_lightning.models.vit import ViT
from pmf_lightning.pipeline.conversion import from_official
from pmf_lightning.weights import positions_are_trained, read_official
from pmf_lightning.weights.families import position_table

SIZES = {"width": 32, "num_heads": 2, "mlp_dim": 85, "patch": 4, "resolution": 16, "channels": 3, "classes": 5}
SIZES |= {"bottleneck": 8, "rope_theta": 1e4, "attention": "plain"}
SCALARS = {"omega": 4, "t_min": 2, "t_max": 2, "h": 4}
CONDITIONS = {"label": {"kind": "class", "tokens": 8}} | {
    name: {"kind": "scalar", "tokens": tokens} for name, tokens in SCALARS.items()
}
HEADS = {"depth": 1, "heads": {"u": 1}, "conditions": CONDITIONS, "block_gain": 0.32}
LATENTS = {"resolution": 8, "channels": 4, "patch": 2, "bottleneck": None, "rope": "sequence", "positions": "none"}
JIT = {"depth": 2, "context": 6, "context_start": 1, "dropout": 0.0, "attention_dropout": 0.0}
MAKE = {
    "pmf": lambda: ViT(**SIZES, **HEADS, rope="patches", positions="learned"),
    "imf": lambda: ViT(**{**SIZES, **HEADS, **LATENTS}),
    "jit": lambda: JiTViT(**SIZES, **JIT),
}


@pytest.fixture(scope="module")
def golden():
    return _load("fd_generators.npz")


def part(golden, start):
    return {name.removeprefix(start): value for name, value in golden.items() if name.startswith(start)}


def one_step(network, family, golden):
    """The image of one step from the noise, which the file holds as it is fed."""
    noise, labels = golden[f"{family}/noise"], golden[f"{family}/labels"]
    rows = torch.ones(len(noise))
    if family == "jit":
        return network(noise, {"label": labels, "t": rows})["u"]
    omega, *interval = (golden[f"{family}/{name}"] for name in ("cfg", "t_min", "t_max"))
    conditions = {"label": labels, "h": rows, "omega": (1 - 1 / omega) * rows}
    conditions |= {"t_min": interval[0] * rows, "t_max": interval[1] * rows}
    found = network(noise, conditions, heads=["u"])["u"]
    return found if family == "pmf" else noise - found  # pMF predicts the image, iMF the velocity


@pytest.mark.parametrize("family", MAKE)
def test_images_and_gradients_are_the_official_ones(family, golden, tmp_path):
    weights = part(golden, f"{family}/w/")
    torch.save({"model": weights, "step": 3, "samples_seen": 3072}, tmp_path / "post_trained.pth")
    network = load_official(tmp_path / "post_trained.pth", MAKE[family]())
    image = one_step(network, family, golden)
    assert relative(image, golden[f"{family}/image"]) < 1e-6
    (image * golden[f"{family}/cotangent"]).sum().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    found = official_weights(network, prefix="", weights=gradients)
    official = dict(zip(weights, read_official(weights), strict=True))  # FD-loss's names -> the official ones
    wanted = part(golden, f"{family}/g/")
    assert len(wanted) >= 4
    for name, gradient in wanted.items():
        assert relative(found[official[name]].reshape(gradient.shape), gradient) < 1e-5, name


def test_a_flat_file_and_one_of_a_single_set_are_the_same(golden):
    weights = part(golden, "pmf/w/")
    for contents in (weights, {"model": weights}, {"model": weights, "step": 1}):
        found = read_official(contents)
        assert found["u_final_layer.linear._flax_linear.weight"].shape == (48, 32)
        assert found["class_tokens"].shape == (1, 8, 32)
    assert read_official(part(golden, "imf/w/"))["class_tokens"].shape == (8, 32)


def with_fixed_positions(golden):
    return part(golden, "jit/w/") | {"net.pos_embed": position_table(4, 32)}


def test_trained_positions_of_jit_become_a_weight(golden):
    weights, network = part(golden, "jit/w/"), MAKE["jit"]()
    assert positions_are_trained(read_official(weights))
    assert not positions_are_trained(read_official(with_fixed_positions(golden)))
    load_official(weights, network)
    assert torch.equal(network.positions.weight, weights["net.pos_embed"])
    assert torch.equal(official_weights(network)["net.pos_embed"], weights["net.pos_embed"])
    load_official(with_fixed_positions(golden), network)  # a fixed table into a network that learns its own
    assert torch.equal(network.positions.weight, position_table(4, 32))
    other = MAKE["jit"]()
    with pytest.raises(UserError, match="missing: "):
        load_official({name: value for name, value in weights.items() if "blocks.1.norm1" not in name}, other)
    assert other.positions is None


def test_learned_positions_start_at_the_fixed_table(golden):
    network = load_official(with_fixed_positions(golden), MAKE["jit"]())
    assert network.positions is None
    before = one_step(network, "jit", golden)
    network.learn_positions()
    assert torch.equal(one_step(network, "jit", golden), before)
    assert "positions.weight" in dict(network.named_parameters())
    with pytest.raises(ValueError, match="positions=none is not one of sincos, learned"):
        JiTViT(**SIZES, **JIT, positions="none")


def test_convert_stores_that_the_positions_are_learned(tmp_path):
    made = build(compose([*TINY, "backbone.positions=learned"])).network
    weight = made.positions.weight.detach()
    torch.testing.assert_close(weight, position_table(4, 32), rtol=0, atol=1e-6)
    weight += 0.1 * normal("moved", shape=tuple(weight.shape), dtype=torch.float32)
    (tmp_path / "jit.pth").touch()
    contents, cfg = {"model": official_weights(made), "step": 7}, compose(["in=a", "out=b", *TINY], "convert")
    stored = from_official(contents, tmp_path / "jit.pth", cfg)
    assert stored.about.weights == "model"
    assert stored.about.config["backbone"]["positions"] == "learned"
    assert torch.equal(stored.network["positions.weight"], weight)
