"""docs/speed.md shows the committed numbers of experiments/speed_cpu, and its script draws them."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("speed_page")


def test_the_page_has_the_committed_numbers(script):
    page = (ROOT / "docs" / "speed.md").read_text()
    numbers = script.read()
    assert script.filled(page, numbers) == page
    numbers["step_small"]["textbook"]["ms"] += 100
    assert script.filled(page, numbers) != page


def test_a_page_without_marks_is_refused(script):
    with pytest.raises(ValueError, match="has no <!-- table -->"):
        script.filled("# Speed\n", script.read())


def test_a_measurement_that_is_not_there_has_no_row(script):
    numbers = {name: value for name, value in script.read().items() if name != "jit"}
    spent = {"ours_ms": 1, "peer_ms": 2, "ratio": 2, "ratio_min": 1, "ratio_max": 3}
    race = {"width": 8, "images": 2, "threads": 1, **spent}
    row = "| JiT, width 8, 2 images, one thread | 1 ms | JiT's `Denoiser`: 2 ms | 2.00 (1.00 to 3.00) |"
    assert row not in script.table(numbers)
    assert row in script.table({**numbers, "jit": race}).splitlines()
    assert script.growth_of({"a": {"curves": {"batch": [{}]}}}, "size") == []


@pytest.mark.slow
def test_the_pictures_are_drawn(script, tmp_path):
    script.draw_step(script.read(), tmp_path / "step.png")
    script.draw_growth(script.read(), tmp_path / "growth.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("step", "growth"))
