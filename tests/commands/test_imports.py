"""Imports go downwards only, from the commands to the mathematics, which needs neither Lightning nor Hydra."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import pmf_lightning

PACKAGE = Path(pmf_lightning.__file__).parent
FRAMEWORKS = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
# The floors, lowest first. A folder imports itself and folders of lower floors.
FLOORS = (
    "utils",
    "objectives models data tracking reports",
    "config sampling distributed weights",
    "optim",
    "pipeline",
    "toys",
    "encoders",
    "evaluation",
    "training",
    "profiling",
    "sweeps",
    "cli",
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders.split()}
PURE = ("objectives", "models", "sampling", "optim")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
COMMANDS = {name for name in MODULES if name and "." not in name} - FLOOR.keys()


def imported(path):
    """Yield the full dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(name):
    """(modules of ours, top-level names of others) that the module ``name`` imports."""
    ours, others = set(), set()
    for full in imported(MODULES[name]):
        top, _, rest = full.partition(".")
        if top != "pmf_lightning":
            others.add(top)
            continue
        while rest not in MODULES:  # the last part may be a name inside the module
            rest = rest.rpartition(".")[0]
        ours.add(rest)
    return ours - {name, ""}, others


@cache
def reach(name):
    """All modules of ours that importing ``name`` imports."""
    found, waiting = set(), [name]
    while waiting:
        for other in imports(waiting.pop())[0] - found:
            found.add(other)
            waiting.append(other)
    return frozenset(found)


def folder(name):
    return name.partition(".")[0]


def test_the_parser_sees_what_is_there():
    ours, others = imports("objectives.pixel_meanflow")
    assert {"objectives.fields", "utils.rng", "objectives.base", "objectives.guidance"} <= ours
    assert {"torch", "jaxtyping", "dataclasses"} <= others
    assert "lightning" in imports("pipeline.module")[1]
    assert {"train", "sample", "evaluate"} <= COMMANDS
    assert FLOOR.keys() <= {folder(name) for name in MODULES}


def test_folders_import_lower_floors_only():
    upwards = [
        f"{name} imports {other}"
        for name in MODULES
        if name not in COMMANDS and name
        for other in imports(name)[0]
        if folder(other) != folder(name) and FLOOR.get(folder(other), len(FLOORS)) >= FLOOR[folder(name)]
    ]
    assert not upwards, upwards


def test_the_mathematics_needs_no_framework():
    pure = [name for name in MODULES if folder(name) in PURE]
    found = {
        module: imports(module)[1] & FRAMEWORKS
        for name in pure
        for module in {name} | reach(name)
        if imports(module)[1] & FRAMEWORKS
    }
    assert not found, found
    code = (
        "import sys, pmf_lightning.objectives.fields, pmf_lightning.objectives.pixel_meanflow, pmf_lightning.weights\n"
        "from pmf_lightning import PixelMeanFlow, MuonAdam, generate, load_official, ema_beta\n"
        f"print(*sorted({FRAMEWORKS} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_no_module_imports_itself_and_none_uses_pythons_global_random_numbers():
    circles = [name for name in MODULES if name in reach(name)]
    assert not circles, circles
    assert not [name for name in MODULES if "random" in imports(name)[1]]


def test_public_names_are_importable():
    for name in pmf_lightning.__all__:
        assert getattr(pmf_lightning, name).__name__ == name
    assert set(pmf_lightning.__all__) <= set(dir(pmf_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pmf_lightning.nonsense
