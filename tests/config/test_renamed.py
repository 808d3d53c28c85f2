"""Options that were renamed: the old name is refused with the new one, and stored configurations are converted."""

import ast
import re
from pathlib import Path

import pytest

from pmf_lightning import compose
from pmf_lightning.config.option_table import COMMANDS
from pmf_lightning.config.renamed import RENAMED, new_name, rename_options
from pmf_lightning.utils.errors import UserError

# (command, other overrides, old spelling, new name)
SPELLINGS = [
    ("train", [], "objective.derivative=one_pass", "objective.jvp"),
    ("train", [], "+objective.derivative=one_pass", "objective.jvp"),
    ("train", [], "ema.half_lives_kimg=[1]", "ema.halflife_kimg"),
    ("train", [], "grid.rows=2", "sample_grid.rows"),
    ("train", [], "grid={rows: 2}", "sample_grid"),
    ("train", [], "non_finite.stop_after=3", "skip_nonfinite.max_in_a_row"),
    ("train", [], "times=full", "objective.time_sampling"),
    ("train", [], "backbone.trunk=1", "backbone.depth"),
    ("train", [], "metrics.classifier.warm_up=1", "metrics.classifier.warmup_steps"),
    ("train", ["model=drifting_tiny"], "queues.push=32", "queues.push_per_step"),
    ("train", ["model=mae_tiny"], "objective.mirror=true", "objective.flip"),
    ("train", ["perceptual=classifier"], "features.classifier.settings.warm_up=1", "warmup_steps"),
    ("sample", [], "method=heun", "sampler"),
    ("sample", [], "chunk=3", "batch_size"),
    ("shard", [], "workers=3", "num_workers"),
    ("benchmark", [], "reader.workers=[0]", "reader.num_workers"),
    ("toy", ["toys=manifold_jit"], "evaluation.method=heun", "evaluation.sampler"),
]


@pytest.mark.parametrize(("command", "others", "old", "new"), SPELLINGS, ids=lambda value: str(value))
def test_an_old_name_is_refused_with_the_new_one(command, others, old, new):
    with pytest.raises(UserError, match=rf"it is now called \S*{new}") as refused:
        compose([*others, old], command)
    assert "\n" not in str(refused.value)


def test_a_stored_configuration_gets_todays_names():
    old = {
        "grid": {"enabled": True},
        "non_finite": {"stop_after": 5},
        "objective": {"_target_": "package.Class", "velocity": "head", "P_mean": 0.8},
        "features": {"classifier": {"settings": {"warm_up": 20}}, "lpips": None},
        "ema": {"half_lives_kimg": [1, 2], "ramp": None},
    }
    new = rename_options(old)
    assert new == {
        "sample_grid": {"enabled": True},
        "skip_nonfinite": {"max_in_a_row": 5},
        "objective": {"_target_": "package.Class", "v_source": "head", "P_mean": 0.8},
        "features": {"classifier": {"settings": {"warmup_steps": 20}}, "lpips": None},
        "ema": {"halflife_kimg": [1, 2], "rampup_ratio": None},
    }
    assert rename_options(new) == new


def test_names_of_names_are_todays():
    assert new_name("grid.rows") == "sample_grid.rows"
    assert new_name("objective.P_mean") == "objective.P_mean"
    for old in RENAMED:
        assert new_name(new_name(old)) == new_name(old) != old


def test_no_option_has_the_old_name_of_another():
    """Such an option would be converted to the other one when a stored run is read."""
    options = {option for table in COMMANDS.values() for option in table}
    assert "schedule.decay_shape" in options
    assert new_name("schedule.decay") == "schedule.decay_fraction"
    assert {option: new_name(option) for option in options if new_name(option) != option} == {}


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "experiments" / "gpu").glob("*.sh")]
TEXTS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]


def options_in(file: Path) -> set[str]:
    """Names in front of an equals sign: in the strings of a Python file, all of a script, the code of a page."""
    text = file.read_text()
    if file.suffix == ".py":
        strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        text = "\n".join(one for one in strings if isinstance(one, str))
    elif file.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", text, re.S))
    return set(re.findall(r"(?<![\w.$-])[a-z]\w*(?:\.\w+)*(?==)", text))


def test_scripts_and_texts_use_todays_names():
    found = {file: options_in(file) for file in (*SCRIPTS, *TEXTS)}
    assert {"backbone.width", "metrics", "micro_batch"} <= set().union(*found.values())
    old = {file.name: names for file in found if (names := [one for one in found[file] if new_name(one) != one])}
    assert not old
