"""The word "last" where a command takes a model."""

import os

import pytest
from omegaconf import OmegaConf
from stored import write_checkpoint

from pmf_lightning import UserError, compose
from pmf_lightning.commands import convert
from pmf_lightning.pipeline.loading import with_last_run


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
    assert with_last_run(OmegaConf.create({"ckpt": [".", "last"]})).ckpt == [".", runs]
    for other in ("./runs", None, "owner/name"):
        cfg = OmegaConf.create({"ckpt": other})
        assert with_last_run(cfg) is cfg
    for other, words in (("./last", r"^ckpt=\./last: no such file or folder"), ("???", "^ckpt is not set; give a run")):
        with pytest.raises(UserError, match=words):
            with_last_run(OmegaConf.create({"ckpt": other}))


def test_convert_takes_it(runs):
    assert convert.run(compose(["in=last", "out=made"], "convert")).about.config["name"] == "pmf_tiny"


def test_without_a_run_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"in=last: no run with a checkpoint under {tmp_path}/runs; give a run dir"):
        convert.run(compose(["in=last", "out=made"], "convert"))
