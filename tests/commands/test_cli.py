"""A command runs its job as Hydra does, and composes once."""

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pmf_lightning import UserError, cli
from pmf_lightning.config import compose


@pytest.fixture
def composed(monkeypatch):
    """What was composed in a test: (overrides, with Hydra's section)."""
    seen = []
    by_hydra = compose._by_hydra
    monkeypatch.setattr(compose, "_by_hydra", lambda *given: seen.append((given[0], given[2])) or by_hydra(*given))
    return seen


@pytest.fixture
def jobs():
    """What the jobs of ``job`` have seen."""
    return []


@pytest.fixture
def job(jobs):
    def note(cfg):
        assert "hydra" not in cfg
        about = HydraConfig.get()
        jobs.append((cfg.seed, about.mode, about.job.name, list(about.overrides.task), about.runtime.output_dir))

    return cli.command("train")(note)


def test_a_single_run_is_composed_once_and_knows_what_hydra_knows(job, jobs, composed, call_command, tmp_path):
    assert call_command(job, "seed=3", "model=pmf_tiny") == (0, "", "")
    assert jobs == [(3, RunMode.RUN, "train", ["seed=3", "model=pmf_tiny"], str(tmp_path))]
    assert composed == [(["seed=3", "model=pmf_tiny"], True)]
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("given", [["hydra.verbose=false"], ["--run"], ["hydra/hydra_logging=none"]], ids=str)
def test_with_options_of_hydra_the_run_is_hydras_own(job, jobs, composed, call_command, tmp_path, given):
    assert call_command(job, "seed=3", *given)[0] == 0
    assert [seen[:2] for seen in jobs] == [(3, RunMode.RUN)]
    assert jobs[0][3:] == (["seed=3"], str(tmp_path))
    assert len(composed) == 1  # hydra.main has its own


def test_hydra_mode_of_the_command_line_makes_a_multirun(job, jobs, call_command):
    assert call_command(job, "seed=3", "hydra.mode=MULTIRUN", "~hydra.callbacks.sweep")[0] == 0
    assert [seen[:2] for seen in jobs] == [(3, RunMode.MULTIRUN)]


def test_known_errors_are_one_line_and_others_keep_their_traceback(call_command):
    def known(cfg):
        raise UserError(f"seed={cfg.seed}: not today; take another")

    def other(cfg):
        raise ZeroDivisionError("a bug")

    assert call_command(cli.command("train")(known)) == (2, "", "error: seed=0: not today; take another\n")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        call_command(cli.command("train")(other))
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()
