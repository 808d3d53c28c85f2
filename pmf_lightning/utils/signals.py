"""The signals that ask this process to stop, and those that did: a sweep looks here before its next run."""

import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Windows has the first two
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
RECEIVED: list[signal.Signals] = []
