"""Tables in conf/: an option names a row, its values can be set one by one, and the table is no part of a run."""

import pytest
from omegaconf import OmegaConf

from pmf_lightning import UserError, build, compose
from pmf_lightning.config.row_tables import PICKED, stored


def sizes(*overrides):
    backbone = OmegaConf.to_container(compose(["model=pmf_b16", *overrides]), resolve=True)["backbone"]
    return [backbone[name] for name in ("width", "num_heads", "depth", "heads")]


def test_a_size_picks_a_row_and_each_value_can_still_be_set():
    assert sizes() == [768, 12, 8, {"u": 8, "v": 8}]
    assert sizes("backbone.size=l") == [1024, 16, 24, {"u": 8, "v": 8}]
    assert sizes("backbone.size=l", "backbone.depth=3", "backbone.heads.v=1") == [1024, 16, 3, {"u": 8, "v": 1}]
    assert sizes("backbone=imf", "backbone.size=xl") == [1024, 16, 40, {"u": 8, "v": 8}]


def test_a_row_can_be_added():
    row = "{width: 24, num_heads: 2, mlp_dim: 32, depth: 1, heads: {u: 1, v: 1}, bottleneck: null}"
    assert sizes(f"+backbone.sizes.mine={row}", "backbone.size=mine") == [24, 2, 1, {"u": 1, "v": 1}]


def test_tables_are_neither_stored_nor_passed_to_constructors():
    cfg = compose(["model=pmf_tiny", "objective.time_sampling=only_tied"])
    config = stored(cfg)
    assert build(cfg, empty=True).config == config
    for option in PICKED:
        part, _, name = option.partition(".")
        assert f"{name}s" in cfg[part]
        assert not {name, f"{name}s"} & config[part].keys()
    assert (config["objective"]["flow_matching_fraction"], config["objective"]["r_law"]) == (1.0, "any")
    assert build(OmegaConf.create(config), empty=True).config == config  # what a checkpoint holds builds the same


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "backbone.size=q",
            r"backbone.size=q: there is no such row of backbone.sizes; known: b, digits, h, l, s, tiny",
        ),
        ("objective.time_sampling=ful", r"no such row of objective.time_samplings; did you mean full\?"),
        ("backbone.sizes=3", r"backbone.sizes=3: it is a table of rows; leave it out, .* by backbone.size="),
        ("backbone.sizes=null", r"backbone.sizes=null: it is a table of rows"),
        ("backbone=vit_b", r"backbone=vit_b: sizes are rows of one file; backbone=vit backbone.size=b"),
        ("backbone=mae_r256", r"backbone=mae backbone.size=r256"),
    ],
)
def test_rows_that_are_not_there_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        compose(["model=pmf_tiny", override])
