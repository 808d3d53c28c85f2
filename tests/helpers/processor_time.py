"""A pytest plugin: the processor seconds of each test, with its fixtures and the processes that it waited for.

A test that takes more than ``SLOW`` seconds is slow by definition, and carries the marker. Machines differ and share
their cores, so the run fails only above ``FAILS``; the tests between are listed.

With --minutes=45 no test begins later than 45 minutes after the start: the rest is skipped, which the summary counts.
The order of the files then changes from run to run, so that in time all are run on a slow machine, too.
"""

import os
import random
import time

import pytest

SLOW, FAILS = 2.0, 30.0
_seconds: dict[str, float] = {}
_begun = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="skip the tests that have not begun after so many minutes")


def pytest_collection_modifyitems(config, items):
    if config.getoption("minutes") is not None:
        files = sorted({str(item.path) for item in items})
        order = random.Random(_run(config)).sample(files, len(files))
        items.sort(key=lambda item: order.index(str(item.path)))


def _run(config) -> str:
    """Return the name of this run, which all workers of pytest-xdist share."""
    return getattr(config, "workerinput", {}).get("testrunuid", str(time.time()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    minutes = item.config.getoption("minutes")
    if minutes is not None and time.monotonic() - _begun > 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes")


def _now() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = _now()
    result = yield
    if item.get_closest_marker("slow") is None:
        _seconds[item.nodeid] = round(_now() - before, 2)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Collect what a worker of pytest-xdist measured."""
    _seconds.update(getattr(node, "workeroutput", {}).get("processor_seconds", {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["processor_seconds"] = _seconds
    elif any(seconds > FAILS for seconds in _seconds.values()) and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if not _seconds:
        return
    terminalreporter.section("processor seconds")
    terminalreporter.line(f"{sum(_seconds.values()):.0f} s in {len(_seconds):,} tests that are not marked slow")
    for name, seconds in sorted(_seconds.items(), key=lambda one: -one[1]):
        if seconds > SLOW:
            wrong = ": mark it slow, or make it faster" if seconds > FAILS else ""
            terminalreporter.line(f"{seconds:6.1f} s  {name}{wrong}")
