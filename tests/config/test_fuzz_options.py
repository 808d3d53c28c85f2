"""Whatever a command line says, it ends well or in one line, before anything is written."""

import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf
from spoiling import fuzz, only_user_errors

from pmf_lightning import UserError, build, compose
from pmf_lightning.config import validate
from pmf_lightning.config.compose import one_line
from pmf_lightning.sweeps.jobs import KNOWN
from pmf_lightning.training.prepare import check_inputs, make_data, make_evaluator, open_source

BASE = ["model=pmf_tiny", "data=digits"]
VALUES = [
    *("null", "true", "false", "0", "-1", "1", "3", "7.5", "1e30", "2147483648", "1" + "0" * 30, "nan", "inf", "-inf"),
    *("", "''", "x", "[]", "[1,2]", "{}", "{a:1}", "[[]]", "???", "${seed}", "${oc.env:HOME}", "${nothing}", "a b"),
    *("'a=b'", "a=b", "中文", "a,b", "1_000", "0x10", "auto", "gpu", "cpu", "mps", "last", "..", "/", "~", "\\"),
    *("'", '"', "(", "}", "1:2", "a:b", "[", "{_target_:os.system}", "null,1", "2026_11", "1" * 400),
]
SIGNS = ["", "", "", "", "", "", "+", "++", "~"]


def options():
    """The name of every option of a training run, and of every group of options."""
    cfg = compose(BASE)
    waiting, found = [((), OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])))], []
    while waiting:
        way, tree = waiting.pop()
        found += [".".join(map(str, way))] if way else []
        if isinstance(tree, dict):
            waiting += [((*way, key), inner) for key, inner in tree.items()]
    return sorted({*found, "model", "recipe", "experiment", "scale", "launcher", "nothing", "a.b", "", "seed.x", "0"})


def prepare(overrides):
    """Do what the train command does before it writes."""
    try:
        cfg = compose([*BASE, *overrides])
        validate.training(cfg)
        source = open_source(cfg)
        module = build(cfg, empty=True)
        check_inputs(cfg, source, module.objective)
        make_evaluator(cfg, source, module)
        make_data(cfg, source, module.objective).accumulation(validate.world_size(cfg.trainer))
    except KNOWN as error:  # as a command prints them
        raise UserError(one_line(error)) from error


def lines():
    one = st.builds("{}{}={}".format, *(st.sampled_from(known) for known in (SIGNS, options(), VALUES)))
    return st.lists(st.one_of(one, one, one, one, st.sampled_from(VALUES)), min_size=1, max_size=2)


@pytest.mark.filterwarnings("ignore")
def test_a_few_command_lines_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz(lines(), lambda overrides: only_user_errors(lambda: prepare(overrides)), 6)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_command_lines_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz(lines(), lambda overrides: only_user_errors(lambda: prepare(overrides)), 300)
    assert not list(tmp_path.iterdir())
