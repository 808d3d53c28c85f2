"""What README.md and docs/ name is there: commands and overrides, functions, log keys, presets, experiments, links."""

import ast
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import extending
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from shrunk import backbone

from pmf_lightning import Batch, build, compose
from pmf_lightning.config.command_line import readable
from pmf_lightning.config.compose import CONF, check_choices, scaled
from pmf_lightning.config.groups import groups
from pmf_lightning.config.option_table import COMMANDS
from pmf_lightning.config.presets import published
from pmf_lightning.objectives.base import QueueBatch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
METHODS = {name: ROOT / "docs" / "methods" / f"{name}.md" for name in ("pmf", "imf", "jit", "drifting")}
JAX = ROOT / "docs" / "from_jax.md"
GROUPS = groups()
COMMAND = re.compile(
    r"(?:(?:python|torchrun[^`]*?|srun[^`]*?) -m pmf_lightning\.|\bpmf )(?!completion)([a-z]\w*)([^`]*)"
)


@pytest.fixture(autouse=True)
def the_users_files(request, tmp_path, monkeypatch):
    """The page of the user's own code names files that it shows itself."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("page") == extending.PAGE:
        monkeypatch.setenv("PMF_CONF", str(extending.write_example(tmp_path)))
        monkeypatch.syspath_prepend(tmp_path)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(text: str) -> list[str]:
    """Lines of the shell blocks, continued ones joined, and what stands in backticks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """(command, arguments) of every line that calls one of ours and has no <placeholder>."""
    found = []
    for line in code_of(text):
        if (match := COMMAND.search(line)) and "<" not in line:
            found.append((match[1], shlex.split(match[2], comments=True)))
    return found


def tables_of(text: str, *header: str) -> list[list[str]]:
    """The rows, without their outer bars, of every table whose header begins with these cells."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[: len(header)] == list(header):
            inside = True
        elif not cells:
            inside = False
        elif inside and set(line) - set("|- "):
            rows.append(cells)
    return rows


def as_main_reads(command: str, override: str) -> str:
    """What the mains of some commands make of an override before Hydra sees it."""
    key, _, value = override.partition("=")
    match command, key, value:
        case "info", "model", "all":
            return "every_model=true"
        case "toy", "experiment", _:
            return f"toys={value}"
    return override


def jobs_of(command: str, arguments: list[str]) -> list[list[str]]:
    """The overrides of each job of a command line; of a sweep, so many jobs that every value has its turn."""
    given = [as_main_reads(command, a) for a in arguments if "=" in a and not a.startswith("-")]
    several = bool({"-m", "--multirun"} & set(arguments))
    given = readable(given, command, several)
    if not several:
        return [given]
    parsed = OverridesParser.create().parse_overrides(given)
    values = [_values(o, text) for o, text in zip(parsed, given, strict=True)]
    return [[options[job % len(options)] for options in values] for job in range(max(map(len, values)))]


def _values(override: Override, text: str) -> list[str]:
    """The overrides that a sweep makes of one; an interval, which a sweeper draws from, stands for its lower end."""
    if isinstance(override.value(), IntervalSweep):
        return [f"{override.get_key_element()}={override.value().start}"]
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_choice_is_there(page):
    for command, arguments in commands_of(page.read_text()):
        assert (ROOT / "pmf_lightning" / f"{command}.py").is_file(), command
        if command in COMMANDS:
            for job in jobs_of(command, arguments):
                check_choices(scaled(job))
                OverridesParser.create().parse_overrides(job)


def test_commands_are_found_in_both_forms():
    text = "`pmf train model=a` and `pmf completion bash`\n```bash\ntorchrun -n 2 -m pmf_lightning.train b=1  # c\n```"
    assert commands_of(text) == [("train", ["b=1"]), ("train", ["model=a"])]
    assert sum(len(commands_of(page.read_text())) for page in PAGES) > 100


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_composes(page):
    for command, arguments in commands_of(page.read_text()):
        if command in COMMANDS:
            for job in jobs_of(command, arguments):
                compose(job, command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@cache
def defined_in(path: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    body = ast.parse(path.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = {node.name: node for node in body if isinstance(node, kinds)}
    inner = {f"{name}.{part.name}" for name, node in top.items() for part in node.body if isinstance(part, kinds)}
    return {*top, *inner}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_function_exists(page):
    found = re.findall(r"\[`(\w+\.py):([\w.]+)`\]\(([^)]+)\)", page.read_text())
    assert len(found) > 10 or page not in METHODS.values()
    for file, function, target in found:
        path = (page.parent / target).resolve()
        assert path.name == file, target
        assert function in defined_in(path), f"{file}:{function}"


def spans_of(cell: str) -> list[tuple[str, list[str]]]:
    """(command, overrides) of what stands in backticks and sets something; without a command's name it is train's."""
    found = []
    for span in re.findall(r"`([^`]+)`", cell):
        first, *rest = shlex.split(span)
        if "=" in first:
            first, rest = "train", [first, *rest]
        if rest and all(re.match(r"\+?[a-zA-Z_][\w.]*=", part) for part in rest):
            found.append((first, rest))
    return found


SECTIONS = re.split(r"^## ", JAX.read_text(), flags=re.M)[1:]
METHODS_THERE = ("pMF", "iMF", "JiT", "Drifting")
KEPT = {"data", "data.root", "trainer", "metrics.reference"}  # of the base, where an entry brings another model


def key_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def on_top(base: list[str], overrides: list[str]) -> list[str]:
    keys = {key_of(o) for o in overrides}
    replaced = keys | {key_of(o) for o in base if key_of(o).split(".")[0] in keys - {"data"}}
    kept = [o for o in base if key_of(o) not in replaced and ("model" not in keys or key_of(o) in KEPT)]
    return kept + overrides


@cache
def composed(command: str, choices: tuple[str, ...]) -> DictConfig:
    return compose(choices, command)


def check_keys(config: DictConfig, overrides: list[str]) -> None:
    """What Hydra asks of overrides of plain values: the key is there, or, after a +, only what holds it."""
    for override in OverridesParser.create().parse_overrides(overrides):
        parent, _, last = override.key_or_group.rpartition(".")
        there = last in list(
            OmegaConf.select(config, parent) if parent else config
        )  # a list has those that are ??? too
        assert there != override.is_add(), override.input_line
        override.value()  # raises where it cannot be read


def title_of(section: str) -> str:
    return section.split("\n", 1)[0]


def base_of(section: str) -> list[str]:
    """The overrides of the command above the table."""
    return next((arguments for command, arguments in commands_of(section) if command == "train"), [])


def entries_of(section: str) -> list[tuple[str, list[str]]]:
    rows = tables_of(section, "there", "here", "differs") + tables_of(section, "file", "read by")
    return [entry for row in rows for cell in row[1:] for entry in spans_of(cell)]


@pytest.mark.parametrize("section", SECTIONS, ids=title_of)
def test_every_entry_of_from_jax_is_an_override(section):
    rows, base = tables_of(section, "there", "here", "differs"), base_of(section)
    if title_of(section) in METHODS_THERE:
        assert len(rows) > 10
        assert all(len(row) == 3 and spans_of(row[1]) for row in rows), "every row sets something"
    chosen = tuple(o for o in base if key_of(o) in ("model", "data"))
    for command, overrides in entries_of(section):
        choices = [o for o in overrides if key_of(o) in GROUPS]
        check_choices(choices)
        if command != "train" or not choices:
            check_keys(composed(command, chosen if command == "train" else tuple(choices)), _plain(overrides))


def _plain(overrides: list[str]) -> list[str]:
    return [o for o in overrides if key_of(o) not in GROUPS]


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=title_of)
def test_every_entry_of_from_jax_composes(section):
    base = base_of(section)
    for command, overrides in entries_of(section):
        if any(key_of(o) in GROUPS for o in overrides):  # the others are checked above
            compose(on_top(base, overrides) if command == "train" else overrides, command)


IMAGES = 1251 * 1024  # of an epoch whose last batch is dropped


@pytest.mark.parametrize(
    ("model", "facts"),
    [  # the official configs, by the rules that the page gives
        ("imf_b2", {"images": 640 * IMAGES, "schedule.warmup_fraction": 10 / 640, "optimizer.lr": 1e-4, "batch": 1024}),
        ("jit_b16", {"images": 600 * IMAGES, "schedule.warmup_fraction": 5 / 600, "optimizer.lr": 5e-5 * 1024 / 256}),
        ("jit_b16", {"batch": 8 * 128, "objective.P_mean": 0.8, "sampling.t_min": 1 - 1.0, "sampling.t_max": 0.9}),
        ("pmf_b16", {"objective.omega_max": 1 + 7.0, "batch": 1024, "ema.rampup_ratio": 0.05, "optimizer.lr": 1e-3}),
        (
            "drifting_b16",
            {"batch": 128 * 64, "images": 100_000 * 128 * 64, "schedule.warmup_fraction": 10_000 / 100_000},
        ),
        (
            "drifting_b2",
            {"batch": 128 * 64, "images": 200_000 * 128 * 64, "schedule.warmup_fraction": 10_000 / 200_000},
        ),
    ],
)
def test_the_rules_of_from_jax_lead_to_the_presets(model, facts):
    cfg = composed("train", (f"model={model}", f"data={published()[model].data}"))
    for key, value in facts.items():
        assert OmegaConf.select(cfg, key) == pytest.approx(value), key


def test_the_half_lives_of_from_jax():
    kimg = {"7097": (0.9999, 1024), "1774": (0.9996, 1024), "5675": (0.999, 8192), "2838": (0.999, 4096)}
    for written, (decay, batch) in kimg.items():
        assert 0.5 ** (batch / (1000 * float(written))) == pytest.approx(decay, abs=1e-6)
        assert written in JAX.read_text()


def test_the_latents_of_from_jax_are_those_of_the_factor():
    line = next(arguments for command, arguments in commands_of(JAX.read_text()) if "latents_scaled" in str(arguments))
    decoder = compose(line).decoder
    assert list(decoder.mean) == [0, 0, 0, 0]
    assert [1 / std for std in decoder.std] == pytest.approx([0.18215] * 4, rel=1e-6)


def numbers_in(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


@pytest.mark.parametrize("name", METHODS)
def test_presets_are_what_the_papers_say(name):
    rows = tables_of(METHODS[name].read_text(), "preset")
    assert {row[0].strip("`") for row in rows} == {
        model for model, facts in published().items() if model.startswith(name) and getattr(facts, "parameters", None)
    }
    for preset, data, parameters, quality in rows:
        facts = published()[preset.strip("`")]
        assert data.strip("`") == facts.data
        assert numbers_in(parameters) == [facts.parameters]
        assert numbers_in(quality) == [n for n in (facts.fid, facts.inception_score) if n is not None]


STUDIES = {path.parent.name: OmegaConf.load(path).study for path in sorted((CONF / "experiment").glob("*/study.yaml"))}


POSTTRAINING = ROOT / "docs" / "methods" / "posttraining.md"
STUDY_PAGES = {**{f"{name}_": page for name, page in METHODS.items()}, "fd_": POSTTRAINING, "rdm_": POSTTRAINING}


def experiments_of(page: Path) -> dict[str, str]:
    return {row[0].strip("`"): row[2] for row in tables_of(page.read_text(), "experiment")}


def test_every_study_is_on_the_page_of_its_method():
    listed = {page: experiments_of(page) for page in STUDY_PAGES.values()}
    assert {study for studies in listed.values() for study in studies} == set(STUDIES)
    for page, studies in listed.items():
        starts = tuple(start for start, other in STUDY_PAGES.items() if other == page)
        assert all(study.startswith(starts) for study in studies)


@pytest.mark.parametrize("study", STUDIES)
def test_the_numbers_of_the_paper_are_those_of_the_study(study):
    (cell,) = [cells[study] for cells in map(experiments_of, set(STUDY_PAGES.values())) if study in cells]
    missing = [n for n in STUDIES[study].arms.values() if n is not None and n not in numbers_in(cell)]
    assert not missing, f"{missing} of conf/experiment/{study}/study.yaml"


MODELS = {"pmf": "pmf_digits", "imf": "imf_digits", "jit": "jit_tiny", "drifting": "drifting_tiny"}
OF_CALLBACKS = {"grad_norm", "skipped_steps"}  # training/callbacks/skip_nonfinite.py


@pytest.mark.parametrize("name", METHODS)
def test_log_keys_are_those_of_the_objective(name):
    cells = [row[0] for row in tables_of(METHODS[name].read_text(), "log key")]
    named = {key.split("/")[0] for cell in cells for key in re.findall(r"`([^`]+)`", cell)}
    assert named >= OF_CALLBACKS
    logged = keys_of(MODELS[name])
    if name == "pmf":
        logged |= set(composed("train", ("model=pmf_b16", "data=imagenet256")).objective.perceptual)
    if name == "jit":
        logged |= keys_of("jit_tiny", loss="x") | keys_of("jit_tiny", loss="eps")
    assert named - OF_CALLBACKS == logged


@cache
def tiny(model: str):
    return build(compose([f"model={model}", *backbone(model)]))


def keys_of(model: str, **changes: str) -> set[str]:
    """What the log of a step holds under names that the objective gives."""
    network, objective = tiny(model).network, replace(tiny(model).objective, **changes)
    x, y = torch.zeros(4, 1, 32, 32), torch.arange(4)
    batch, features = Batch(x, y), None if model.startswith("jit") else {}
    if model.startswith("drifting"):
        batch, features = (
            QueueBatch(x[:, None], y, x[:, None]),
            lambda images: {"global": images.flatten(1)[:, None]},
        )
    losses = objective(network, batch, objective.draw(batch, 0, 0), features)
    return {*losses.per_sample, *losses.distances, *losses.diagnostics, *losses.scalars}


def test_documented_encoders_have_images_to_be_watched_by():
    found = [
        arguments
        for page in PAGES
        for command, arguments in commands_of(page.read_text())
        if command == "train" and any(argument.startswith("model=mae_") for argument in arguments)
    ]
    assert len(found) >= 2
    for arguments in found:
        cfg = compose(arguments)
        assert cfg.data.get("held_out_fraction", 1) > 0 or not cfg.sample_grid.enabled, arguments
