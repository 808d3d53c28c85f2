"""Activation checkpointing: the same numbers, less memory, and a derivative that it leaves alone."""

import pytest
import torch
from common import objective, rows, tiny_network
from shrunk import backbone

from pmf_lightning import build, compose
from pmf_lightning.models.activation_checkpointing import recompute_blocks
from pmf_lightning.models.layers import Block
from pmf_lightning.profiling.live_bytes import peak_bytes
from pmf_lightning.utils.errors import UserError


def losses_and_gradients(network, goal):
    batch, draws = rows()
    losses = goal(network, batch, draws)
    losses.total.backward()
    return losses.per_sample, {name: weight.grad for name, weight in network.named_parameters()}


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_nothing_changes_in_the_numbers(form):
    plain, saving = tiny_network(), tiny_network()
    assert recompute_blocks(saving) == 3
    assert list(saving.state_dict()) == list(plain.state_dict())
    losses, gradients = losses_and_gradients(plain, objective(jvp=form))
    again, gradients_again = losses_and_gradients(saving, objective(jvp=form))
    for name, value in losses.items():
        assert torch.equal(value, again[name])
    for name, value in gradients.items():
        assert torch.equal(value, gradients_again[name]), name


@pytest.mark.slow
def test_memory_is_saved():
    def peak(saving):
        network = tiny_network(depth=8, width=64, mlp_dim=128, attention="fused", dtype=torch.float32).to("meta")
        if saving:
            recompute_blocks(network)
        goal, (batch, draws) = objective(jvp="two_pass"), rows(dtype=torch.float32)
        x, noise = (torch.empty_like(value, device="meta") for value in (batch.x, draws.noise))
        batch, draws = type(batch)(x, batch.y.to("meta")), type(draws)(**{**vars(draws), "noise": noise})
        for weight in network.parameters():
            weight.grad = torch.empty_like(weight)
        return peak_bytes(lambda: goal(network, batch, draws).total.backward())

    assert peak(True) < 0.5 * peak(False)


@pytest.mark.parametrize("model", ["pmf_tiny", "jit_b16", "drifting_b16"])
def test_configuration_builds_it(model):
    data = ["data=digits", "data.channels=3", "data.resolution=32", *backbone(model)]
    module = build(compose([f"model={model}", *data, "backbone.patch=8", "activation_checkpointing=true"]))
    assert getattr(module.objective, "jvp", "two_pass") == "two_pass"
    assert all("forward" in vars(block) for block in module.network.trunk)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("activation_checkpointing=true", "activation_checkpointing=true: .* has no transformer blocks"),
        ("compile=true", "compile=true: mae_tiny is no"),
    ],
)
def test_an_autoencoder_has_neither(option, words):
    with pytest.raises(UserError, match=words):
        build(compose(["model=mae_tiny", option]))


def test_a_network_without_blocks_is_not_compiled(monkeypatch):
    monkeypatch.setattr(Block, "is_block", False)
    with pytest.raises(UserError, match="compile=true: the network of pmf_tiny has no blocks to compile; leave it out"):
        build(compose(["model=pmf_tiny", *backbone("pmf_tiny"), "compile=true"]))
