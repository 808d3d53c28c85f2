"""The notebook runs top to bottom."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "quickstart.ipynb"


@pytest.mark.slow
def test_quickstart_runs(capsys):
    matplotlib.use("Agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {}
    for number, source in enumerate(code):
        source = source.replace("steps, size, errors = 60,", "steps, size, errors = 3,")  # the same cell, fewer steps
        exec(compile(source, f"cell {number}", "exec"), names)
    assert "parameters to sample" in capsys.readouterr().out
    assert names["samples"].shape == (20, 1, 32, 32)
    assert len(names["errors"]) == 3
    matplotlib.pyplot.close("all")
