"""Importing and drawing leave matplotlib's backend and the open figures of a session alone."""

import ast
from pathlib import Path

import pytest
from processes import python

import pmf_lightning
from pmf_lightning.utils.figures import new_figure, subplots

PACKAGE = Path(pmf_lightning.__file__).parent
EVERYTHING = """
import importlib, pkgutil, sys
import matplotlib, pmf_lightning
before = dict.__getitem__(matplotlib.rcParams, "backend")
for found in pkgutil.walk_packages(pmf_lightning.__path__, "pmf_lightning."):
    importlib.import_module(found.name)
assert dict.__getitem__(matplotlib.rcParams, "backend") == before, before
from matplotlib import pyplot
mine = pyplot.figure() if before == "svg" else None
from pathlib import Path
from pmf_lightning.training.plots import save_curves
Path("log.jsonl").write_text('{"images": 1, "loss_u": 1.0}\\n')
assert save_curves(Path("log.jsonl"), Path("curves.png")).stat().st_size > 1000
assert pyplot.get_fignums() == ([1] if mine else [])
"""


def test_no_module_imports_pyplot_or_chooses_a_backend():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
                assert not any("pyplot" in name or "pylab" in name for name in names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) not in ("matplotlib.use", "plt.switch_backend"), path


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "svg"])
def test_importing_everything_leaves_the_backend_alone(tmp_path, monkeypatch, backend):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    done = python("-c", EVERYTHING, cwd=tmp_path, **({"MPLBACKEND": backend} if backend else {}))
    assert done.returncode == 0, done.stderr[-2000:]


def test_figures_are_those_of_pyplot_without_pyplot(tmp_path):
    figure, axes = subplots(2, 3, (6, 4), "constrained", squeeze=False, sharey=True)
    assert axes.shape == (2, 3)
    axes[1, 2].plot([1, 2], [3, 4])
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    figure.canvas.draw()
    assert figure.canvas.buffer_rgba().shape[2] == 4
    assert new_figure(figsize=(1, 1), dpi=30).bbox.size.tolist() == [30, 30]
