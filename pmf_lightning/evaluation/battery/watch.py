"""Watch for a loss that improves its own encoders while others get worse: numbers improve and images do not."""

from collections.abc import Mapping
from typing import Any

IN_A_ROW = 3


class DisagreementWatch:
    """Counts measurements in a row in which the trained encoders' mean fell and the held-out encoders' mean rose.

    ``update`` returns a warning when there are IN_A_ROW of them, and again after as many more. The state is that of a
    checkpoint: a resumed run warns at the same measurement.
    """

    def __init__(self) -> None:
        self.step, self.trained, self.held_out, self.count = -1, None, None, 0

    def update(self, step: int, trained: float | None, held_out: float | None) -> str | None:
        """Enter the mean ratios measured after ``step``; None for one that does not exist. Old steps are ignored."""
        if trained is None or held_out is None or step <= self.step:
            return None
        before = self.trained, self.held_out
        self.step, self.trained, self.held_out = step, trained, held_out
        apart = None not in before and trained < before[0] and held_out > before[1]
        self.count = self.count + 1 if apart else 0
        if not self.count or self.count % IN_A_ROW:
            return None
        return (
            f"step {step}: the encoders of the loss improve (mean ratio {trained:.3g}), the held-out ones get worse "
            f"({held_out:.3g}), {self.count} measurements in a row: the loss is fooled; stop here, lower the learning "
            "rate, or train with more encoders"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"step": self.step, "trained": self.trained, "held_out": self.held_out, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.step, self.trained, self.held_out, self.count = (
            state[name] for name in ("step", "trained", "held_out", "count")
        )
