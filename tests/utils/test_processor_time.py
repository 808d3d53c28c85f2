"""Tests that have not begun in time are skipped and counted, and each run takes the files in another order."""

import pytest
from processes import python


@pytest.fixture
def files(tmp_path):
    for name in "abcdefgh":
        (tmp_path / f"test_{name}.py").write_text("def test_first(): pass\ndef test_second(): pass\n")
    return tmp_path


def run(folder, *arguments):
    """Return the order of the tests, as "a" or "b", and the last line."""
    options = ["-p", "processor_time", "-p", "no:cacheprovider", "-v"]
    done = python("-m", "pytest", *options, *arguments, cwd=folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    return [line[5] for line in lines if "::" in line and line.startswith("test_")], lines[-1]


def test_what_has_not_begun_in_time_is_skipped_and_counted(files):
    assert "16 skipped" in run(files, "--minutes=0")[1]
    order, last = run(files, "--minutes=5")
    assert "16 passed" in last
    assert sorted(order) == sorted(2 * "abcdefgh")
    assert order[::2] == order[1::2]  # the tests of a file stay together: they share fixtures
    assert order != run(files, "--minutes=5")[0]


def test_without_a_limit_the_order_is_that_of_the_files(files):
    assert "".join(run(files)[0]) == "aabbccddeeffgghh"
