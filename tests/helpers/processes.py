"""Programs that tests run in a process of their own: for its imports or exit status, or without checks of shapes."""

import os
import subprocess
import sys

HANG = 1500  # seconds; less than pytest's own limit, which would not show what the program had printed


def program(*command, cwd=None, stdout=subprocess.PIPE, **variables):
    """Run a command with the import path of this process, and return it with what it printed.

    It has one thread, as the tests: sums in another order would differ in the last bit. ``variables`` are set in its
    environment, beside those of this process.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **variables}
    words = [str(word) for word in command]
    streams = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(words, **streams, timeout=HANG, cwd=cwd, env=environment)


def python(*arguments, **options):
    """Run the Python of this process with ``arguments``; otherwise as ``program``."""
    return program(sys.executable, *arguments, **options)
