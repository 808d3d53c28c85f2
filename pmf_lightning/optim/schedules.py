"""The learning rate as a function of the step."""


def rate_factor(step: int, steps: int, warm_up: int | float, decay: int | float) -> float:
    """Return the factor on the learning rate of step ``step`` (from 0) of ``steps``.

    It rises linearly over the first share ``warm_up`` of the steps and falls linearly towards 0 over the last share
    ``decay``; both 0 mean a constant rate, as pMF has it.
    """
    rise = (step + 1) / (warm_up * steps) if warm_up else 1.0
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return min(1.0, rise, fall)
