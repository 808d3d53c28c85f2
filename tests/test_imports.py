"""Imports go one way: the mathematics needs neither Lightning nor Hydra, and no room looks into a later one."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import pmf_lightning

PACKAGE = Path(pmf_lightning.__file__).parent
FRAMEWORKS = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
PURE = (
    *("diagnostics", "fields", "draws", "ode", "sampling", "precision", "objectives", "models", "optim", "perceptual"),
    "drift_features",
)
# Room -> the only rooms of ours that it may import.
ALLOWED = {
    "diagnostics": set(),
    "errors": set(),
    "bounded": set(),
    "tensor_files": set(),
    "draws": set(),
    "fields": {"precision"},
    "precision": set(),
    "ode": {"fields"},
    "sampling": {"draws", "fields", "ode", "precision"},
    "models": {"models", "bounded", "errors", "precision", "state_names", "tensor_files"},
    "objectives": {"objectives", "fields", "draws", "precision"},
    "published": {"config", "precision"},
    "wandb_runs": {"cache", "errors", "provenance"},
    "dashboards": {"dashboards", "errors"},
    "provenance": set(),
    "same_run": set(),
    "scales": {"errors"},
    "trusted": {"errors"},
    "kept_network": {"cache", "tensor_files"},
    "figures": set(),
    "reports": {"reports", "bounded", "cache", "errors", "figures", "folders"},
    "terminal": set(),
    "report": {"reports", "errors", "terminal"},
    "state_names": {"errors"},
    "weights_folder": {"bounded", "cache", "errors", "state_names"},
    "evaluation": {
        *{"evaluation", "bounded", "cache", "data", "draws", "errors", "kept_network", "metrics", "precision"},
        *{"state_names", "tensor_files"},
    },
    "locks": {"errors"},
    "shards": {"shards", "bounded", "cache", "data", "draws", "errors", "locks", "precision"},
    "perceptual": {"perceptual", "data", "errors", "metrics", "precision", "state_names", "tensor_files"},
    "drift_features": {
        *{"drift_features", "cache", "data", "draws", "errors", "kept_network", "models", "objectives", "perceptual"},
        *{"precision", "state_names", "tensor_files"},
    },
}
FORBIDDEN = {
    "data": {"objectives", "models", "module", "sampling", "callbacks", "train"},
    "metrics": {"objectives", "models", "module", "train"},
    "optim": {"objectives", "models", "module", "data", "metrics", "train"},
    "module": {"train", "callbacks", "sample", "metrics", "perceptual", "features"},
    "callbacks": {"train", "sample"},
    "judging": {"train", "sample", "hands"},
    "subjects": {"train", "evaluate", "search_guidance", "callbacks", "hands"},
    "guidance_search": {"train", "sample", "evaluate", "search_guidance", "callbacks", "hands"},
    "toys": {"train", "sample", "toy", "callbacks"},
    "features": {"module", "callbacks", "train", "sample", "models"},
    "costs": {"callbacks", "info", "sample", "train"},
    "conversion": {"convert", "train", "sample", "callbacks"},
    "sweeps": {"train", "sample", "command", "callbacks", "hands", "report", "reports"},
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


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


def reach(name):
    """All modules of ours that importing ``name`` imports."""
    found, waiting = set(), [name]
    while waiting:
        for other in imports(waiting.pop())[0] - found:
            found.add(other)
            waiting.append(other)
    return found


def room(name):
    return name.partition(".")[0]


def of_rooms(*rooms):
    return sorted(name for name in MODULES if room(name) in rooms)


def test_the_parser_sees_what_is_there():
    ours, others = imports("objectives.pixel_meanflow")
    assert {"fields", "draws", "objectives.contract", "objectives.guidance"} <= ours
    assert {"torch", "jaxtyping", "dataclasses"} <= others
    assert "lightning" in imports("module")[1]
    assert "fields" in reach("module") | reach("objectives.pixel_meanflow")
    assert all(of_rooms(name) for name in (*PURE, *ALLOWED, *FORBIDDEN))


@pytest.mark.parametrize("name", of_rooms(*PURE))
def test_mathematics_needs_no_framework(name):
    for module in {name} | reach(name):
        assert not imports(module)[1] & FRAMEWORKS, f"{name} imports a framework through {module}"


@pytest.mark.parametrize("name", of_rooms(*ALLOWED))
def test_rooms_import_only_what_they_may(name):
    assert {room(other) for other in imports(name)[0]} <= ALLOWED[room(name)]


@pytest.mark.parametrize("name", of_rooms(*FORBIDDEN))
def test_rooms_do_not_look_into_later_ones(name):
    assert not {room(other) for other in imports(name)[0]} & FORBIDDEN[room(name)]


def test_no_cycles():
    for name in MODULES:
        assert name not in reach(name), f"{name} imports itself through {sorted(reach(name))}"


def test_nothing_uses_pythons_global_random_numbers():
    for name in MODULES:
        assert "random" not in imports(name)[1], name


def test_importing_the_mathematics_loads_no_framework():
    code = (
        "import sys, pmf_lightning.fields, pmf_lightning.objectives.pixel_meanflow, pmf_lightning.models.official\n"
        "from pmf_lightning import PixelMeanFlow, MuonAdam, generate, load_official, ema_beta\n"
        f"print(*sorted({FRAMEWORKS} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_public_names_are_importable():
    for name in pmf_lightning.__all__:
        assert getattr(pmf_lightning, name).__name__ == name
    assert set(pmf_lightning.__all__) <= set(dir(pmf_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pmf_lightning.nonsense
