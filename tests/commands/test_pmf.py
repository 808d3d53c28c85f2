"""The program pmf: its commands, its help, and tab completion."""

import os
import runpy
import shutil
import sys
import types
from pathlib import Path

import pytest
from processes import program, python

import pmf_lightning
from pmf_lightning.__main__ import COMMANDS, main
from pmf_lightning.config.completion import SCRIPTS, completions
from pmf_lightning.config.compose import choices
from pmf_lightning.utils import provenance

PACKAGE = Path(pmf_lightning.__file__).parent


def test_each_command_is_listed():
    assert set(COMMANDS) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli"}


def test_help_is_printed_without_heavy_imports():
    code = (
        "import sys; sys.argv = ['pmf', '--help']\n"
        "from pmf_lightning.__main__ import main\n"
        "main()\n"
        "print({'torch', 'hydra', 'lightning', 'yaml'} & set(sys.modules))"
    )
    done = python("-c", code)
    lines = done.stdout.splitlines()
    assert lines.pop() == "set()", done.stderr
    assert "  train            Train a model" in lines
    for command in COMMANDS:
        assert any(line.startswith(f"  {command} ") and len(line.split()) > 2 for line in lines), command


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--version"], 0, f"pmf_lightning {pmf_lightning.__version__}"),
        ([], 0, "Train, ablate and evaluate"),
        (["trian", "seed=1"], 2, "error: pmf trian: there is no such command; did you mean train?"),
        (["--seed"], 2, "error: pmf --seed: there is no such command"),
        (["completion"], 2, "error: pmf completion: give a shell: bash, zsh, fish"),
        (["completion", "csh"], 2, "error: pmf completion csh: give a shell"),
    ],
)
def test_what_pmf_prints_itself(call_command, arguments, status, words):
    ended, output, errors = call_command(main, *arguments)
    assert ended == status
    assert (errors if status else output).startswith(words)
    if status:
        assert len(errors.splitlines()) == 1


def test_a_command_runs_as_with_python_m(call_command, tmp_path, monkeypatch):
    seen = {}

    def run(module, run_name, alter_sys):
        seen.update(module=module, name=run_name, arguments=sys.argv[1:], path=sys.path[0])

    monkeypatch.setattr(runpy, "run_module", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    call_command(main, "make-stats", "out=x", "--help")
    wanted = {"module": "pmf_lightning.make_stats", "name": "__main__", "arguments": ["out=x", "--help"]}
    assert seen == {**wanted, "path": str(tmp_path)}


def test_a_run_of_pmf_records_the_command_of_python_m(monkeypatch):
    running = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="pmf_lightning.train"))
    monkeypatch.setitem(sys.modules, "__main__", running)
    for called in (["/usr/bin/pmf"], ["-m", "pmf_lightning"]):
        monkeypatch.setattr(sys, "orig_argv", ["python3", *called, "train", "seed=1", "name=a b"])
        assert provenance.command_line() == "python -m pmf_lightning.train seed=1 'name=a b'"


def test_completion_of_models_lists_the_presets():
    presets = [f"model={name}" for name in choices("model") if name.startswith("pmf_")]
    assert completions("pmf train seed=1 model=pmf_", COMMANDS) == presets
    assert completions("pmf info -m model=pmf_", COMMANDS) == presets


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("pmf s", ["sample", "search_guidance", "shard"]),
        ("pmf evaluate prot", ["protocol.", "protocol="]),
        ("pmf train data=digits data.resol", ["data.resolution="]),
        ("pmf make-stats images", ["images="]),
        ("pmf report runs", []),
        ("pmf train model=nonsense se", []),
        ("pmf train model=[ se", []),
        ("pmf nonsense a", []),
    ],
)
def test_completion_of_words(line, wanted):
    assert completions(line, COMMANDS) == wanted


def test_completion_knows_the_folders_of_the_user(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pmf_mine.yaml").write_text("name: mine\n")
    assert "model=pmf_mine" in completions(f"pmf train --config-dir {tmp_path} model=pmf_", COMMANDS)
    assert "model=pmf_mine" not in completions("pmf train model=pmf_", COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_in_bash(tmp_path):
    (tmp_path / "pmf").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pmf_lightning "$@"\n')
    (tmp_path / "pmf").chmod(0o755)
    lines = [
        SCRIPTS["bash"],
        'COMP_LINE="pmf train model=pmf_h16 seed=0" COMP_POINT=21 COMP_WORDS=(pmf train model=pmf_h16) COMP_CWORD=2',
        "_pmf_completion",
        'printf "[%s]" "${COMPREPLY[@]}"',
        'COMP_LINE="pmf tr" COMP_POINT=6 COMP_WORDS=(pmf tr) COMP_CWORD=1',
        "_pmf_completion",
        'printf "[%s]" "${COMPREPLY[@]}"',
        "complete -p pmf >/dev/null && echo",
    ]
    done = program("bash", "-c", "\n".join(lines), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stdout == "[model=pmf_h16][model=pmf_h32][train ]\n"
