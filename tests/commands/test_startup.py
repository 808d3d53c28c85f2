"""Help and refusals come at once: no command imports PyTorch, or what needs it, before its arguments are checked."""

import pytest
from processes import python
from test_imports import NOT_IN_INFO

from pmf_lightning.__main__ import COMMANDS

HEAVY = ("torch", "lightning", "torchvision", "torchmetrics", "timm", "wandb", "sklearn", "scipy", "matplotlib", "rich")
# Calls commands in one process, as the command line does, and prints what each left behind that it should not need.
CALLS = f"""
import contextlib, importlib, io, sys
words, *calls = sys.argv[1:]
for call in calls:
    name, *arguments = call.split(" ")
    sys.argv = [name, *arguments]
    main = importlib.import_module("pmf_lightning." + name).main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as end:
            code = end.code
    expected = (0, None) if "--help" in arguments else (2,)
    assert code in expected, (call, code, printed.getvalue())
    assert words in printed.getvalue(), (call, printed.getvalue())
    assert (("pmf_lightning." + name) in printed.getvalue()) == ("--help" in arguments), (call, printed.getvalue())
    assert not {set(HEAVY)!r} & set(sys.modules), (call, {set(HEAVY)!r} & set(sys.modules))
"""


def check(calls, words=""):
    done = python("-c", CALLS, words, *calls)
    assert done.returncode == 0, done.stderr


def test_train_helps_and_refuses_without_pytorch():
    check(["train --help"])
    check(["train optimizer.lr=fast", "train data=cifar10 optimizer.lr=fast"], "optimizer.lr=fast: give one number")


@pytest.mark.slow
def test_every_command_helps_and_refuses_without_pytorch():
    others = [name for name in COMMANDS if name != "report"]  # tests/reports/test_report.py
    check([f"{name} --help" for name in others] + [f"{name} nonsense" for name in others])
    check(["train model=nope", "train experiment=nope", "evaluate batch_size=many"])
    typed = [f"{name} ckpt=nowhere" for name in ("sample", "evaluate", "search_guidance", "play")]
    check(
        [*typed, "toy experiment=fields ckpt=nowhere", "play ckpt=[last,nowhere]", "convert in=nowhere out=x"],
        "=nowhere: no such file or folder; give a",
    )
    check(["sample", "search_guidance", "play", "toy experiment=fields"], "ckpt is not set; give a run directory")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pmf_b16", "drifting_tiny"])
def test_info_counts_a_model_without_lightning(model):
    code = (
        f"import sys; from pmf_lightning.info import info; info(['model={model}'])\n"
        f"print(*sorted({NOT_IN_INFO} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
