"""The signals that asked this process to stop: runs take them down, a sweep looks here before its next run."""

import signal

HEARD: list[signal.Signals] = []
