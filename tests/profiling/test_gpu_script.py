"""experiments/gpu/run.sh on the CPU in tiny sizes: its ten minutes on a GPU are no place for a typo."""

import json
import re
import sys
from pathlib import Path

import pytest
from processes import program

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_script_measures_what_it_names(tmp_path):
    environment = {"DEVICE": "cpu", "SMALL": "1", "PY": sys.executable, "OUT": str(tmp_path), "ENTRY": "100"}
    done = program("bash", ROOT / "experiments/gpu/run.sh", "bench", "fit", **environment)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert "failed" not in told
    assert "skipped" not in told
    rows = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["pmf_b16", "pmf_h16", "pmf_l16", "pmf_b32", "pmf_b16"]
    assert all(row["textbook"] for row in rows)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"machine", "sampling", "fit"}
    assert results["sampling"]
    assert results["fit"]["largest_micro_batch"]["pmf_b16"]["images"] == 4


def test_every_step_has_its_precision():
    """trainer=gpu alone means bf16-mixed."""
    script = (ROOT / "experiments/gpu/run.sh").read_text()
    steps = re.findall(r"^  step .*", script, re.MULTILINE)
    chosen = [re.search(r"trainer\.precision=(\S+)", step)[1] for step in steps]
    assert chosen == ['"$HALF"'] * 4 + ["32-true"] + ['"$HALF"'] * 2


def test_it_leaves_at_most_eight_files():
    """More would not come back from a machine that was lent."""
    script = (ROOT / "experiments/gpu/run.sh").read_text()
    files = set(re.findall(r'"\$OUT/([\w.]+)"', script))
    assert {"results.json", "check.json", "bench.jsonl", "samples.png"} <= files
    assert len(files) <= 8
    parts = set(re.findall(r'"\$PARTS/(\w+)\.json"', script))
    assert parts == {"machine", "sampling", "fit", "train"}
    assert parts == set(re.findall(r"^ *keep (\w+)$", script, re.MULTILINE))
