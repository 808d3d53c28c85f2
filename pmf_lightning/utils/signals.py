"""Stop signals, and the list of those received, which a sweep checks before its next run."""

import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Windows has the first two
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
RECEIVED: list[signal.Signals] = []
