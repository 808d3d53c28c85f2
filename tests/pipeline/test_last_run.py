"""The word "last" where a command takes a model."""

import os

import pytest
from omegaconf import OmegaConf
from stored import write_checkpoint

from pmf_lightning import UserError, compose
from pmf_lightning.commands import convert
from pmf_lightning.pipeline.loading import with_last_run
from pmf_lightning.pipeline.sources import check_given


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, one of them an arm of a sweep; the older one has the later name."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("pmf_tiny-digits/2026-01-01_10-00-00", "study/small/z-seed0")):
        file = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        write_checkpoint(file)
        os.utime(file, (1e9 - age, 1e9 - age))
    return "runs/pmf_tiny-digits/2026-01-01_10-00-00"


def test_last_is_the_newest_run(runs, capsys):
    cfg = OmegaConf.create({"ckpt": "last", "out": "???"})
    assert with_last_run(cfg).ckpt == runs
    assert capsys.readouterr().out == f"ckpt=last: {runs}\n"
    assert cfg.ckpt == "last"
    assert with_last_run(OmegaConf.create({"ckpt": ["before", "last"]})).ckpt == ["before", runs]
    for other in ("./last", None, "owner/name"):
        cfg = OmegaConf.create({"ckpt": other})
        assert with_last_run(cfg) is cfg
    with pytest.raises(UserError, match=r"^ckpt is not set; give a run"):
        with_last_run(OmegaConf.create({"ckpt": "???"}))


def test_convert_takes_it(runs):
    assert convert.run(compose(["in=last", "out=made"], "convert")).about.config["name"] == "pmf_tiny"


def test_without_a_run_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"in=last: no run with a checkpoint under {tmp_path}/runs; give a run dir"):
        convert.run(compose(["in=last", "out=made"], "convert"))


@pytest.mark.parametrize(
    "given", [None, "last", ".", [".", "last"], [], "owner/name@v1", "no/${ema}.pth", "${hydra:runtime.cwd}/x", "~", 3]
)
def test_what_may_name_a_model_passes(given):
    check_given("ckpt", given)


@pytest.mark.parametrize("given", ["nowhere", [".", "nowhere"], "runs/no/run", "~nobody/run", "x" * 300, "no.ckpt"])
def test_what_names_no_model_is_refused(given):
    name = given[-1] if isinstance(given, list) else given
    with pytest.raises(UserError, match=f"^ckpt={name}: no such file or folder; give a run directory"):
        check_given("ckpt", given)
