"""Config folders of the user: --config-dir, hydra.searchpath and PMF_CONF extend conf/."""

import os
import sys

import pytest

from pmf_lightning import UserError, compose
from pmf_lightning.config import search_path
from pmf_lightning.config.compose import choices, scaled
from pmf_lightning.config.job_arguments import resume_arguments
from pmf_lightning.train import main as train_main

MODEL = """# @package _global_
defaults:
  - pmf_tiny
  - _self_
name: my_digits
mine: {alpha: 3, beta: no}
"""


@pytest.fixture
def myconf(tmp_path, monkeypatch):
    """A folder with a model, a group of its own and an experiment; also the package ``my_package.conf``."""
    folder = tmp_path / "my package" / "my_package" / "conf"
    files = {
        "model/my_digits": MODEL,
        "twist/hard": "# @package _global_\nmine: {alpha: 9}\n",
        "experiment/my_sweep": "# @package _global_\nseed: 7\n",
    }
    for name, text in files.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(folder.parents[1])
    monkeypatch.delenv(search_path.VARIABLE, raising=False)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]  # other tests have a package of this name


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["--config-dir", "--config-dir=", "-cd", "file", "plain", "pkg", "PMF_CONF"])
def named(request, myconf, monkeypatch):
    """The arguments that name the folder, in each way there is."""
    if request.param == "PMF_CONF":
        monkeypatch.setenv("PMF_CONF", os.pathsep.join([str(myconf), "pkg://hydra.conf"]))
    return {
        "--config-dir": ["--config-dir", str(myconf)],
        "--config-dir=": [f"--config-dir={myconf}"],
        "-cd": ["-cd", str(myconf)],
        "file": [f"hydra.searchpath=['file://{myconf}']"],
        "plain": [f"hydra.searchpath=['{myconf}']"],
        "pkg": ["hydra.searchpath=[pkg://my_package.conf]"],
        "PMF_CONF": [],
    }[request.param]


def test_each_way_finds_the_folder(named):
    cfg = compose([*named, "model=my_digits", "mine.alpha=4"])
    assert (cfg.name, dict(cfg.mine)) == ("my_digits", {"alpha": 4, "beta": False})


def test_groups_and_experiments_of_the_folder(myconf):
    found = [f"--config-dir={myconf}"]
    assert compose([*found, "model=my_digits", "+twist=hard"]).mine.alpha == 9
    assert compose([*found, "experiment=my_sweep"]).seed == 7
    with search_path.added([f"file://{myconf}"]):
        assert "my_digits" in choices("model")
        assert scaled(["experiment=my_sweep"]) == ["experiment=my_sweep"]
    assert "my_digits" not in choices("model")
    assert search_path.VARIABLE not in os.environ


def test_names_of_the_folder_are_checked_like_ours(myconf):
    found = f"--config-dir={myconf}"
    assert "did you mean my_digits or" in refused(found, "model=my_digit")
    assert "did you mean mine.alpha?" in refused(found, "model=my_digits", "mine.alpa=4")
    assert "batchsize: there is no such option" in refused(found, "model=my_digits", "batchsize=4")
    assert "seed=x: set it to an integer" in refused(found, "model=my_digits", "seed=x")
    assert "there is no such model" in refused("model=my_digits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no folder"),
        (["-cd"], "-cd: the name of the folder is missing"),
        (["hydra.searchpath=[file://nowhere]"], "there is no folder"),
        (["hydra.searchpath=[pkg://no.where]"], "there is no package no.where"),
        (["hydra.searchpath=[s3://bucket]"], "s3:// is unknown; give a folder"),
        (["hydra.searchpath=conf"], "give a list, such as"),
        (["hydra.searchpath=[conf"], "Hydra cannot read the list"),
    ],
    ids=" ".join,
)
def test_a_folder_that_is_not_there_is_refused(arguments, words):
    assert words in refused(*arguments)


def test_the_command_line_names_it_to_every_process(myconf, call_command, monkeypatch):
    """The command's own processes inherit PMF_CONF; the command that resumes names the folder again."""
    seen = {}

    def train(cfg):
        seen.update(name=cfg.name, again=resume_arguments(myconf), child=os.environ[search_path.VARIABLE])
        return {}

    monkeypatch.setattr("pmf_lightning.train.train", train)
    status, _, errors = call_command(train_main, "--config-dir", str(myconf), "model=my_digits", "mine.alpha=5")
    assert status == 0, errors
    assert seen == {
        "name": "my_digits",
        "again": [f"--config-dir={myconf}", "model=my_digits", "mine.alpha=5", f"run_dir={myconf}", "ckpt=last"],
        "child": f"file://{myconf}",
    }
    assert search_path.VARIABLE not in os.environ


def test_help_lists_its_choices(myconf, call_command):
    status, output, _ = call_command(train_main, "-cd", str(myconf), "--help")
    assert status == 0
    assert "mae_tiny, my_digits, pmf_b16" in " ".join(output.split())
    assert "twist: hard" in output
    assert sys.argv == ["pmf_lightning", "--help"]
