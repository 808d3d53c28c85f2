"""The learning rate as a function of the step."""


def rate_factor(step: int, steps: int, warm_up: int | float, decay: int | float, first: float = 0.0) -> float:
    """Return the factor on the learning rate of step ``step`` (from 0) of ``steps``.

    It rises linearly from ``first`` (step 0) to 1 (step ``warm_up`` x ``steps``), as in the official codes of iMF, JiT
    and Drifting, and falls linearly towards 0 over the last share ``decay`` of the steps. Both shares 0 mean a constant
    rate, as pMF has it.
    """
    rise = first + (1 - first) * step / (warm_up * steps) if warm_up else 1.0
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return min(1.0, rise, fall)
