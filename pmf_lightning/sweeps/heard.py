"""The signals that asked this process to stop: runs take them down, a sweep looks here before its next run."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # those that ask
HEARD: list[signal.Signals] = []
