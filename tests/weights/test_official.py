"""Official pMF weights: every name is mapped, and whatever does not fit is named and refused."""

import pickle

import pytest
import torch

from pmf_lightning import UserError, build, load_official
from pmf_lightning.weights import official_name


class Foreign:
    """A class that a weights file has no business to hold."""


@pytest.fixture
def network(tiny_config):
    return build(tiny_config).network


def loaded(network, weights):
    """Whether every weight of ``network`` that ``weights`` names has its value."""
    ours = {official_name(name): value for name, value in network.state_dict().items()}
    return all(torch.equal(ours[name], value) for name, value in weights.items() if name in ours)


def test_names_are_exactly_the_official_ones(network, official_weights):
    ours = {official_name(name): value for name, value in network.state_dict().items()}
    assert len(ours) == len(network.state_dict())
    assert ours.keys() == official_weights.keys() - {"rope_freqs"}
    assert all(value.shape == official_weights[name].shape for name, value in ours.items())


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("from_file", [False, True])
def test_loads_with_and_without_prefix_from_a_dict_or_a_file(network, official_weights, tmp_path, prefix, from_file):
    assert not loaded(network, official_weights)
    source = {prefix + name: value for name, value in official_weights.items()}
    assert f"{prefix}rope_freqs" in source
    if from_file:
        torch.save(source, tmp_path / "pMF-tiny.pt")
        source = tmp_path / "pMF-tiny.pt"
    assert load_official(source, network) is network
    assert loaded(network, official_weights)


def test_path_may_be_a_string(network, official_weights, tmp_path):
    torch.save(official_weights, tmp_path / "pMF-tiny.pt")
    load_official(str(tmp_path / "pMF-tiny.pt"), network)
    assert loaded(network, official_weights)


def test_v_heads_may_be_absent_and_keep_their_values(network, official_weights):
    before = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("heads.v")}
    inference = {name: value for name, value in official_weights.items() if not name.startswith("v_")}
    assert len(inference) == len(official_weights) - len(before)
    load_official(inference, network)
    assert loaded(network, inference)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_weights_take_the_dtype_of_the_network(network, official_weights):
    network.double()
    load_official(official_weights, network)
    assert network.positions.weight.dtype == torch.float64
    assert loaded(network, {name: value for name, value in official_weights.items() if name != "rope_freqs"})


def test_everything_that_does_not_fit_is_named(network, official_weights):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = dict(official_weights)
    del weights["pos_embed"]
    del weights["u_heads.1.mlp.w2._flax_linear.weight"]
    weights["shared_blocks.2.attn_scale"] = weights["shared_blocks.1.attn_scale"]
    weights["something"] = torch.zeros(1)
    weights["class_tokens"] = weights["class_tokens"][:, :4]
    with pytest.raises(UserError) as refusal:
        load_official(weights, network)
    message = str(refusal.value)
    assert "\n" not in message
    missing, unexpected, shapes = (
        message.partition(f"{what}: ")[2].partition(";")[0] for what in ("missing", "unexpected", "of another shape")
    )
    assert set(missing.split(", ")) == {"pos_embed", "u_heads.1.mlp.w2._flax_linear.weight"}
    assert set(unexpected.split(", ")) == {"shared_blocks.2.attn_scale", "something"}
    assert "class_tokens (1, 4, 64) instead of (1, 8, 64)" in shapes
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", ["v_heads.5.attn_scale", "v_final_layer.linear._flax_linear.scale"])
def test_optional_parts_may_be_absent_but_not_different(network, official_weights, name):
    with pytest.raises(UserError, match="unexpected"):
        load_official({**official_weights, name: torch.zeros(64)}, network)


@pytest.mark.parametrize("name", ["shared_blocks.0.attn_scale", "u_final_layer.norm.weight", "time_tokens"])
def test_one_missing_weight_is_enough(network, official_weights, name):
    weights = {key: value for key, value in official_weights.items() if key != name}
    with pytest.raises(UserError, match=f"missing: {name}[;)]"):
        load_official(weights, network)


def test_pickled_code_is_refused(network, tmp_path):
    torch.save({"net": Foreign()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"net": Foreign()}, protocol=2))
    for name in ("torch.pt", "plain.pt"):
        with pytest.raises(UserError, match="cannot be read"):
            load_official(tmp_path / name, network)


def test_files_that_are_no_weights(network, tmp_path):
    with pytest.raises(UserError, match="do not exist"):
        load_official(tmp_path / "absent.pt", network)
    (tmp_path / "text.pt").write_text("not a weights file")
    with pytest.raises(UserError, match="cannot be read"):
        load_official(tmp_path / "text.pt", network)
    torch.save({"weights": {"pos_embed": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(UserError, match="not a flat dictionary of tensors"):
        load_official(tmp_path / "nested.pt", network)
