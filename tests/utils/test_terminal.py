"""Commands whose output is not read on, or that are interrupted, end without a traceback."""

import io
import os
import sys
from pathlib import Path

import pytest
from processes import program, python

from pmf_lightning.__main__ import COMMANDS
from pmf_lightning.training.run_log import RunLog
from pmf_lightning.utils.terminal import INTERRUPTED, UNREAD, plain_ending


def nobody_reads(monkeypatch, line_buffering):
    """Make standard output one whose reader has gone; in the test itself, since pytest sets it between its phases."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    stream.reconfigure(line_buffering=line_buffering)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def ending(work):
    with pytest.raises(SystemExit) as ended:
        work()
    return ended.value.code


def test_output_that_nobody_reads_ends_the_command(monkeypatch):
    reached = []

    def work():
        with plain_ending():
            try:
                print("a line")
                reached.append("after it")
            except Exception:  # Hydra catches these
                reached.append("caught")

    with nobody_reads(monkeypatch, True):
        assert ending(work) == UNREAD
        print("more", flush=True)  # goes nowhere
    assert reached == []


def test_what_is_only_noticed_at_the_end(monkeypatch):
    def work(code=None):
        with plain_ending():
            print("a line")
            if code is not None:
                sys.exit(code)

    with nobody_reads(monkeypatch, False):
        assert ending(work) == UNREAD
    with nobody_reads(monkeypatch, False):
        assert ending(lambda: work(2)) == 2  # bad input stays bad input


def test_training_does_not_end_because_nobody_reads(monkeypatch):
    with nobody_reads(monkeypatch, True), plain_ending(), RunLog().recording():
        print("step 1")
        print("step 2", flush=True)


def test_an_interruption_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, plain_ending():
        raise KeyboardInterrupt
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err.split() == ["interrupted"]


def test_other_errors_and_streams_pass(monkeypatch):
    with pytest.raises(ZeroDivisionError), plain_ending():
        _ = 1 / 0
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    before = sys.stdout
    with plain_ending():
        print("text", flush=True)
        assert sys.stdout.getvalue() == "text\n"
    assert sys.stdout is before


def test_a_full_disk_behind_the_output_is_told(monkeypatch, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended, plain_ending():
            print("text")
    assert ended.value.code == 1
    assert "error: the output cannot be written (No space left on device)" in capsys.readouterr().err


def test_an_interruption_while_modules_are_imported_is_one_line():
    code = "import sys; sys.argv = ['-m']; import pmf_lightning; raise {}"
    for error, lines in (("KeyboardInterrupt", ["", "interrupted"]), ("KeyError('x')", None)):
        done = python("-c", code.format(error))
        assert done.returncode != 0
        assert (done.stderr.splitlines() == lines) if lines else ("KeyError: 'x'" in done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info format=json", "info --cfg job"])
def test_commands_into_a_closed_pipe(command):
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", *f"pmf_lightning.{command}".split()]
    done = program(*arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (UNREAD, "")


EVERY_HELP = """
import os, sys
from importlib import import_module
from pmf_lightning.__main__ import COMMANDS, main

mains = {name: import_module(f"pmf_lightning.{name}").main for name in COMMANDS}
for name, work in [("pmf", main), *mains.items()]:
    child = os.fork()
    if not child:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.argv = [name, "--help"]
        work()
        sys.exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_help_of_every_command_into_a_closed_pipe():
    done = python("-c", EVERY_HELP)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name} {UNREAD}" for name in ("pmf", *COMMANDS)]


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&-"])
def test_commands_with_closed_streams(closed):
    line = f'"{sys.executable}" -m pmf_lightning.info {closed}'
    done = program("sh", "-c", line)
    assert (done.returncode, done.stderr) == (0, "")
