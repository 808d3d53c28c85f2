"""The gated controller that balances encoders (RDM, arXiv 2607.02375; train/pid_lagrangian.py).

An encoder whose score is at its floor gets weight 0; the others share a constant sum by how far they are above theirs.
The official name is PID-Lagrangian, but with its default gains the control is proportional only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pmf_lightning.utils.precision import Number

LEAST_TEMPERATURE = 1e-12


@dataclass(frozen=True)
class ControllerState:
    """Per encoder: averaged score, summed error, last error and weight [E], float64; and the number of updates []."""

    average: Float64[Tensor, " e"]
    integral: Float64[Tensor, " e"]
    error: Float64[Tensor, " e"]
    weights: Float64[Tensor, " e"]
    updates: Int64[Tensor, ""]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as plain tensors."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "ControllerState":
        """Return the state of a ``state_dict``."""
        return cls(**state)


@dataclass(frozen=True)
class GatedController:
    """Settings of the controller, set in conf/controller; ``start`` gives the first state and ``updated`` the next.

    Args:
        floors: score of real validation images against the reference, per encoder. The score of N images contains
            (1 - k_rr) / N, so floors belong to the N of training.
        proportional, integral, derivative: gains (kp, ki, kd), 0 or more.
        smoothing: weight of the newest score in the average.
        relative: divide the error by its floor.
        softmax: share ``total`` by a softmax over the encoders above their floor. False gives each its own weight, the
            control signal clipped to [0, ``most``].
        total: sum of the weights with softmax; None means the number of encoders.
        temperature: of the softmax, in units of the mean control signal.
        error_clip: bound of an error's magnitude.
        most: bound of a weight without softmax.

    Raises ValueError for floors or settings out of range.
    """

    floors: tuple[Number, ...]
    proportional: Number
    integral: Number
    derivative: Number
    smoothing: Number
    relative: bool
    softmax: bool
    total: Number | None
    temperature: Number
    error_clip: Number
    most: Number

    def __post_init__(self):
        if not self.floors or (self.relative and not min(self.floors) > 0):
            raise ValueError(f"floors={self.floors}: give one per encoder, above 0 where errors are relative")
        if not self.smoothing <= 1:
            raise ValueError(f"smoothing={self.smoothing}: it is at most 1")
        for name in ("smoothing", "total", "temperature", "error_clip", "most"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}={value}: it is above 0")
        for name in ("proportional", "integral", "derivative"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it is 0 or more")

    def start(self) -> ControllerState:
        """Return the state before the first update: every weight is 1."""
        zeros = torch.zeros(len(self.floors), dtype=torch.float64)
        return ControllerState(zeros, zeros, zeros, zeros + 1, torch.tensor(0))

    @torch.no_grad()
    def updated(self, state: ControllerState, scores: Float[Tensor, "..."]) -> ControllerState:
        """Return the state after the raw ``scores`` [E] of a step; its weights are those of the next step.

        Scores that are not all finite leave the state as it is. All is computed on the device of scores and state, and
        the host reads no value. Raises ValueError for another number of scores.
        """
        if scores.shape != state.average.shape:
            raise ValueError(f"scores {list(scores.shape)} for {len(self.floors)} encoders; give one each")
        scores = scores.detach().double()
        first = state.updates == 0
        floors = torch.tensor(self.floors, dtype=torch.float64).to(scores.device, non_blocking=True)
        average = torch.where(first, scores, (1 - self.smoothing) * state.average + self.smoothing * scores)
        error = (average - floors) / (floors if self.relative else 1)
        error = error.clamp(-self.error_clip, self.error_clip)
        integral = state.integral + error
        change = torch.where(first, 0.0, error - state.error)
        signal = self.proportional * error + self.integral * integral + self.derivative * change
        after = ControllerState(average, integral, error, self._weights(signal), state.updates + 1)
        good, old, new = scores.isfinite().all(), state.state_dict(), after.state_dict()
        return ControllerState(**{name: torch.where(good, new[name], old[name]) for name in old})

    def _weights(self, signal: Float64[Tensor, " e"]) -> Float64[Tensor, " e"]:
        if not self.softmax:
            return signal.clamp(0, self.most)
        active = signal > 0
        mean = torch.where(active, signal, 0.0).sum() / active.sum()
        temperature = (self.temperature * mean).clamp_min(LEAST_TEMPERATURE)
        total = len(self.floors) if self.total is None else self.total
        shares = torch.where(active, signal / temperature, -torch.inf).softmax(0)
        return torch.where(active, total * shares, 0.0)  # without an active encoder the shares are not numbers
