"""experiments/peers: the scripts say what they need, and race a stand-in for a clone of another code."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from processes import python
from shrunk import RUN

FOLDER = Path(__file__).parents[2] / "experiments" / "peers"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "turns.py")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("turns")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_missing_clone_need_no_pytorch(script, monkeypatch, capsys, peers):
    module = importlib.import_module(script.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    if script == "fidelity.py":
        with pytest.raises(SystemExit):
            module.main()
        assert "usage: python experiments/peers/fidelity.py" in capsys.readouterr().out
        monkeypatch.setattr(sys, "argv", [script, "--weights", "/nowhere"])
        with pytest.raises(SystemExit, match="2"):
            module.main()
        assert "--weights /nowhere: no such file; leave it out" in capsys.readouterr().err
        return
    run = lambda: peers.main(module.__doc__, module.ADDRESS, module.DEFAULTS, module.theirs)  # noqa: E731
    run()
    assert f"usage: python experiments/peers/{script} FOLDER" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [script, "/nowhere"])
    with pytest.raises(SystemExit, match="2"):
        run()
    assert f"/nowhere: no such folder; git clone {module.ADDRESS}" in capsys.readouterr().err


def test_a_clone_without_the_file_or_the_package_is_refused(peers, tmp_path, monkeypatch):
    from pmf_lightning.utils.errors import UserError

    monkeypatch.setattr(sys, "path", list(sys.path))
    peer = peers.Peer(tmp_path, "https://there")
    with pytest.raises(UserError, match=r"alien\.py: no such file; git clone https://there"):
        peer.module("alien")
    (tmp_path / "alien.py").write_text("import package_of_nobody\n")
    with pytest.raises(UserError, match=r"alien\.py: it needs package_of_nobody, which is not installed"):
        peer.module("alien")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed: the other side runs on the CPU in float32"),
        ("trainer=gpu", "trainer.accelerator=gpu .* leave both out"),
        ("compile=true", "compile=true: our sampling runs without the compiler"),
    ],
)
def test_what_would_act_on_one_side_only_is_refused(peers, tmp_path, override, words):
    from pmf_lightning.utils.errors import UserError

    with pytest.raises(UserError, match=words):
        peers.race(peers.Peer(tmp_path, "https://there"), ["what=sampling", *RUN, override], lambda peer, cfg: None)


DENOISER = """
import torch

class pMFDenoiser(torch.nn.Module):
    def __init__(self, backbone, img_size, patch_size, bottleneck_dim, num_classes, aux_head_depth, P_mean, P_std,
                 noise_scale, rope_2d, learned_pe, disable_v_head):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros({count}))

    def forward(self, x, y):
        return (self.weight.sum() + x.mean()).square(), {{}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2])
def test_a_race_with_a_stand_in_of_the_same_size(factor, tmp_path):
    from pmf_lightning import build, compose

    small = [*RUN, "data.resolution=8", "backbone.patch=4"]
    weights = sum(weight.numel() for weight in build(compose(["perceptual=none", *small])).network.parameters())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mit.py").write_text("MiT, MiT_models = dict, {}\n")
    (tmp_path / "models" / "denoiser_pmf.py").write_text(DENOISER.format(count=factor * weights))
    done = python(FOLDER / "fd_loss.py", tmp_path, "data=digits", *small, "repeats=2", "images_at_once=4")
    if factor == 2:
        assert done.returncode == 2
        assert f"{weights:,} weights here, {2 * weights:,} there; give sizes that both have" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["parameters"] == {"ours": weights, "peer": weights}
    assert result["images"] == 4
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert result["processor"]["ours_ms"] > 0
    assert result["commit"] is None
