"""Both families alike: official names, head v whole or not at all, and the way back bit for bit."""

import pytest
import torch
from common import empty_network, normal, tiny_network

from pmf_lightning import UserError, build, load_official
from pmf_lightning import official_weights as to_official
from pmf_lightning.weights import FAMILIES, family_of, official_tensors, recognise, translate

V_LAYER = {f"v_final_layer.{end}" for end in ("norm.weight", "linear._flax_linear.weight", "linear._flax_linear.bias")}
IMF = {"bottleneck": None, "rope": "sequence", "positions": "none"}


@pytest.fixture(scope="module", params=["pmf", "imf"])
def family(request):
    return request.param


@pytest.fixture
def network(tiny_config):
    return build(tiny_config).network


@pytest.fixture
def weights(official_weights):
    """The official weights without buffers."""
    return {name: value for name, value in official_weights.items() if name != "rope_freqs"}


@pytest.fixture
def released(weights, family):
    """What a released file of these weights would hold."""
    cut = "v_heads." if family == "imf" else ("v_heads.", "v_final_layer.")
    return {name: value for name, value in weights.items() if not name.startswith(cut)}


def head_v(network):
    return {name: value.clone() for name, value in network.state_dict().items() if name.startswith("heads.v.")}


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def without_head_v(tiny_config):
    cfg = tiny_config.copy()
    cfg.backbone.heads = {"u": 2}
    return build(cfg).network


def test_the_way_there_and_back_changes_no_bit(network, weights):
    assert not same(to_official(network, prefix=""), weights)
    load_official(weights, network)
    assert same(to_official(network, prefix=""), weights)
    assert same(to_official(network), {f"net.{name}": value for name, value in weights.items()})


def test_family_is_known_from_network_and_from_keys(network, weights, family):
    ours, seen = family_of(network), recognise(weights)
    assert ours in FAMILIES
    assert ours is seen.family
    assert ours.name.lower() == family
    assert (seen.width, seen.blocks, seen.classes) == (64, 4, 10)
    assert (seen.patch, seen.channels, seen.side) == ((8, 3, 32) if family == "pmf" else (2, 4, None))
    assert (seen.model, seen.preset) == (None, None)


def test_inference_files_are_as_the_released_ones(network, weights, released):
    load_official(weights, network)
    assert same(to_official(network, prefix="", inference=True), released)


def test_released_files_leave_head_v_as_it_was(network, released, family):
    before = head_v(network)
    load_official(released, network)
    assert same(head_v(network), before)
    loaded = to_official(network, prefix="")
    assert all(torch.equal(loaded[name], released[name]) for name in released.keys() - V_LAYER)
    ours, aside = translate(released, network)
    assert ours.keys() == network.state_dict().keys() - before.keys()
    assert aside.keys() == (V_LAYER if family == "imf" else set())


@pytest.mark.parametrize("name", ["v_heads.1.mlp.w2._flax_linear.weight", "v_final_layer.norm.weight"])
def test_part_of_head_v_is_refused(network, weights, name):
    before = head_v(network)
    with pytest.raises(UserError, match=f"missing: {name}"):
        load_official({key: value for key, value in weights.items() if key != name}, network)
    assert same(head_v(network), before)


def test_a_network_without_head_v_has_no_use_for_it(tiny_config, weights, released, family):
    network = without_head_v(tiny_config)
    load_official(weights, network)
    lean = {name: value for name, value in released.items() if name not in V_LAYER}
    back = to_official(network, prefix="")
    assert same({name: value for name, value in back.items() if name not in V_LAYER}, lean)
    fresh = {name: value for name, value in back.items() if name in V_LAYER}
    assert fresh.keys() == (V_LAYER if family == "imf" else set())
    for name, value in fresh.items():  # the official iMF code wants it there and never uses it
        assert value.shape == weights[name].shape
        assert (value == (1 if ".norm." in name else 0)).all()
    assert translate(weights, network)[1].keys() == {name for name in weights if name.startswith("v_")}


def test_a_head_v_of_no_blocks_takes_the_lone_final_layer(tiny_config, weights):
    cfg = tiny_config.copy()
    cfg.backbone.heads.v = 0
    network = build(cfg).network
    lone = {name: value for name, value in weights.items() if not name.startswith("v_heads.")}
    load_official(lone, network)
    assert same(to_official(network, prefix=""), lone)


def test_other_values_may_be_written(network, weights):
    others = {name: value + 1 for name, value in network.state_dict().items()}
    written = to_official(network, prefix="", weights=others)
    assert {name: value.shape for name, value in written.items()} == {name: w.shape for name, w in weights.items()}
    assert torch.equal(written["class_tokens"].flatten(), others["conditions.label.tokens.weight"].flatten())
    assert same(written, official_tensors(network, others))


def test_files_of_before_zip_are_read_too(network, weights, tmp_path):
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_official(tmp_path / "old.pth", network)
    assert same(to_official(network, prefix=""), weights)


def test_a_loaded_network_does_not_live_in_the_file(network, weights, tmp_path):
    torch.save(weights, tmp_path / "new.pt")
    load_official(tmp_path / "new.pt", network)
    (tmp_path / "new.pt").write_bytes(bytes((tmp_path / "new.pt").stat().st_size))
    with torch.no_grad():
        network.trunk[0].mlp.w1.weight.add_(0.0)
    assert same(to_official(network, prefix=""), weights)


def test_the_other_family_is_named(network, family):
    other = tiny_network(torch.float32, **(IMF if family == "pmf" else {}))
    with pytest.raises(UserError) as refusal:
        load_official(to_official(other), network)
    names = ("iMF", "pMF") if family == "pmf" else ("pMF", "iMF")
    assert f"this file looks like {names[0]} (width 16, 2 blocks, patch 4, 3 channels" in str(refusal.value)
    assert f"the network is {names[1]} (width 64, 4 blocks" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrong", [{}, {"step": torch.zeros(1)}])
def test_weights_of_no_family(network, wrong):
    for use in (lambda: recognise(wrong), lambda: load_official(wrong, network)):
        with pytest.raises(UserError, match=r"neither x_embedder.proj1.weight \(pMF\) nor x_embedder.proj.weight"):
            use()


@pytest.mark.parametrize("changes", [{"bottleneck": None}, {**IMF, "bottleneck": 6}, {**IMF, "rope": "patches"}])
def test_an_architecture_that_no_official_file_has(changes, weights):
    network = empty_network(**changes)
    for use in (lambda: load_official(weights, network), lambda: to_official(network)):
        with pytest.raises(UserError, match=r"no official weights have this architecture \(bottleneck o.*rope="):
            use()


def test_values_of_every_weight_arrive(network):
    """Each weight is another number, so that no two can be swapped."""
    ours = family_of(network)
    marked = {name: normal(name, shape=tuple(value.shape)).float() for name, value in network.state_dict().items()}
    load_official({ours.official_name(name): ours.to_official(name, v) for name, v in marked.items()}, network)
    assert same(network.state_dict(), marked)


def test_what_was_set_aside_can_be_written_again(tiny_config, weights, released):
    network = without_head_v(tiny_config)
    ours, aside = translate(weights, network)
    assert same(to_official(network, prefix="", weights=ours, aside=aside), weights)
    assert same(to_official(network, prefix="", weights=ours, aside=aside, inference=True), released)
