"""experiments/gpu/run.sh on the CPU in tiny sizes: its ten minutes on a GPU are no place for a typo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_script_measures_what_it_names(tmp_path):
    environment = {"DEVICE": "cpu", "SMALL": "1", "PY": sys.executable, "OUT": str(tmp_path), "ENTRY": "100"}
    done = subprocess.run(
        ["bash", str(ROOT / "experiments/gpu/run.sh"), "bench", "fit"],
        **{"capture_output": True, "text": True, "timeout": 580, "check": False},
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert "failed" not in told
    assert "skipped" not in told
    rows = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert json.loads((tmp_path / "sampling.json").read_text())
    assert json.loads((tmp_path / "fit.json").read_text())["largest_micro_batch"]["pmf_b16"]["images"] == 4
