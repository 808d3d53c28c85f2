"""Imports go downwards only, from the commands to the mathematics, which needs neither Lightning nor Hydra."""

import ast
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from processes import python

import pmf_lightning

PACKAGE = Path(pmf_lightning.__file__).parent
# What the command info does without; each costs 0.3 to 2 processor seconds.
NOT_IN_INFO = {"lightning", "torchmetrics", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "wandb", "pandas"}
FRAMEWORKS = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
# The floors, lowest first. A folder imports itself and folders of lower floors.
FLOORS = (
    "utils",
    "objectives models data",
    "config sampling distributed weights",
    "optim tracking reports",
    "pipeline",
    "toys exporting",
    "encoders",
    "evaluation",
    "playground",
    "training",
    "profiling",
    "sweeps",
    "cli",
    "commands",
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders.split()}
PURE = ("objectives", "models", "sampling", "optim")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
# What is run as python -m pmf_lightning.NAME, and the work of each in commands/NAME.py.
COMMANDS = {name for name in MODULES if name and "." not in name} - FLOOR.keys()
WORK = {name for name in MODULES if name.startswith("commands.")}


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


def test_the_mathematics_needs_no_framework_and_info_no_lightning():
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
        f"print('frameworks', *sorted({FRAMEWORKS} & set(sys.modules)))\n"
        "import pmf_lightning.commands.info\n"
        f"print('info', *sorted({NOT_IN_INFO} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["frameworks", "info"]


def test_no_module_imports_itself_and_none_uses_pythons_global_random_numbers():
    circles = [name for name in MODULES if name in reach(name)]
    assert not circles, circles
    assert not [name for name in MODULES if "random" in imports(name)[1]]


# The parts of the package that work for every objective. A released file format may name its method.
SHARED = ["pipeline", "training", "sampling", "profiling", "evaluation", "config", "sweeps", "distributed", "tracking"]
FORMATS = {
    "pipeline.trusted",
    "pipeline.migrate",
    "pipeline.checkpoints",
    "pipeline.conversion",
    "commands.convert",
    "",
}
# What every option of conf/ may be.
OPTION_TABLES = {f"config.option_{part}" for part in ("models", "sections", "toys", "table", "checks")}
OPTION_TABLES |= {"config.renamed"}
OBJECTIVES = {
    "pixel_meanflow": "PixelMeanFlow",
    "jit": "JiT",
    "drifting": "Drifting",
    "masked_autoencoder": "MaskedAutoencoder",
}
CLASSES = [getattr(import_module(f"pmf_lightning.objectives.{name}"), kind) for name, kind in OBJECTIVES.items()]
FIELDS = "|".join({field.name for kind in CLASSES for field in fields(kind)} - {"noise_scale"})
GROUPS = "|".join({group for kind in CLASSES for group in kind.config_groups})
ABOUT_ONE = [
    rf"\b({'|'.join(OBJECTIVES.values())})\b",
    rf"objective\.({FIELDS})\b",
    r"(hasattr|getattr|isinstance)\([\w.]*objective\b",
    r" in [\w.]*objective\b(?!\.)",
    r"objective\.get\(",
    rf"'({GROUPS})' (not )?in ",
    rf"\.get\('({GROUPS})'",
]


def names_an_objective(source):
    """Lines of a module, without comments and docstrings, that name an objective, its fields or ask for its kind."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0].value.value = ""
    return [line.strip() for line in ast.unparse(tree).splitlines() if any(re.search(way, line) for way in ABOUT_ONE)]


def test_the_search_for_objectives_finds_them():
    found = {
        "x = PixelMeanFlow": 1,
        "labels = getattr(module.objective, 'generated', 1)": 1,
        "if 'queues' in cfg: pass": 1,
        "queues = cfg.get('queues')": 1,
        "rows = cfg.batch // cfg.objective.samples_per_label": 1,
        "if 'mirror' in cfg.objective: pass": 1,
        "perceptual = cfg.objective.get('perceptual')": 1,
        "PRESETS = {'JiT': 'jit_b16'}": 1,
        "FREE = ('objective.perceptual',)": 1,
        "print(objective.samplers, cfg.queues.push_per_step, objective.noise_scale)": 0,
    }
    assert {line: len(names_an_objective(line)) for line in found} == found


def test_shared_modules_name_no_objective():
    shared = [name for name in MODULES if folder(name) in SHARED or name in COMMANDS | WORK]
    named = [
        f"{name}: {what}"
        for name in sorted({*shared} - FORMATS - OPTION_TABLES)
        for what in names_an_objective(MODULES[name].read_text())
    ]
    assert not named, named
    modules = {f"objectives.{name}" for name in OBJECTIVES}
    imported = [f"{name} imports {other}" for name in {*shared} - {""} for other in imports(name)[0] & modules]
    assert not imported, imported


def test_evaluation_reaches_no_objective():
    modules = {f"objectives.{name}" for name in OBJECTIVES}
    reached = [
        f"{name} reaches {other}" for name in MODULES if folder(name) == "evaluation" for other in reach(name) & modules
    ]
    assert not reached, reached


def test_public_names_are_importable():
    for name in pmf_lightning.__all__:
        assert getattr(pmf_lightning, name).__name__ == name
    assert set(pmf_lightning.__all__) <= set(dir(pmf_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pmf_lightning.nonsense


# Modules below the commands that may read a complete configuration, because they build from it or check it.
BUILDERS = {
    *(
        "cli",
        "config.one_class",
        "config.option_checks",
        "config.row_tables",
        "config.validate",
        "pipeline.build",
        "pipeline.parts",
        "training.prepare",
    ),
    *("pipeline.checkpoints", "pipeline.conversion", "pipeline.loading"),  # weights in other formats
    "pipeline.batches",  # rows of a step
    "pipeline.images",  # sampling options
    *("evaluation.sample_sources", "evaluation.guidance_search.space"),  # of the commands evaluate and search_guidance
    *("profiling.communication", "profiling.model_facts", "profiling.step_memory"),  # of the command info
    *("sweeps.cost", "sweeps.jobs", "sweeps.preflight"),  # runs before they start are configurations
    *("toys.drift2d", "toys.fields", "toys.manifold", "toys.spiral"),  # each is a command of its own
}


def takes_configuration(path):
    """Whether a function of a file has a parameter ``cfg: DictConfig``."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    arguments = (one for node in functions for one in (*node.args.args, *node.args.kwonlyargs))
    return any(one.arg == "cfg" and "DictConfig" in ast.unparse(one.annotation or one) for one in arguments)


def test_the_configuration_stays_with_the_commands_and_the_builders():
    found = {name for name, path in MODULES.items() if takes_configuration(path)} - COMMANDS - WORK
    assert not found - BUILDERS, "give these values, or a dataclass of settings (training/settings.py)"
