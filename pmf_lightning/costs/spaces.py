"""In which space the network answers, how that becomes a velocity, and what the loss compares it with: in letters."""

from pmf_lightning.objectives.pixel_meanflow import PixelMeanFlow


def conversion(objective: PixelMeanFlow) -> str:
    """Return "answer -> u -> V", for example "x -> u = (z - x) / clip(t, 0.05, 1) -> V"; see fields.py."""
    if objective.prediction == "u":
        return "u -> V"
    to_velocity = f"x -> u = {_clipped(objective)} -> V"
    if objective.preconditioner is None:
        return to_velocity
    name = type(objective.preconditioner).__name__
    return f"F -> x = c_skip(t) z + c_out(t) F ({name}) -> u = {_clipped(objective)} -> V"


def target(objective: PixelMeanFlow) -> str:
    """Return the formula of v_t, which guidance moves to the target v_g."""
    return "e - x" if objective.target == "plain" else _clipped(objective)


def velocity(objective: PixelMeanFlow) -> str:
    """Return where v comes from, the direction of du/dt and the field that guidance mixes."""
    return "v = u(z, t, t)" if objective.velocity == "boundary" else "a head of its own, with its own loss"


def _clipped(objective: PixelMeanFlow) -> str:
    return f"(z - x) / clip(t, {objective.t_clip:g}, 1)"
