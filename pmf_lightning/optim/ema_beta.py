"""The decay of an exponential moving average whose half-life is counted in images, not in steps."""

from pmf_lightning.errors import UserError


def ema_beta(
    images_seen: int | float, batch: int | float, half_life_images: int | float, ramp: int | float | None = 0.05
) -> float:
    """Return the weight that the old average keeps in this step.

    ``images_seen`` counts the images up to and including this step, ``batch`` those of this step (the real global
    batch). Early in training the half-life is only ``ramp`` times the images seen; None: it is the whole half-life from
    the start (iMF). A half-life or batch that is not positive raises UserError. Source: Karras et al. 2022 (EDM), whose
    training loop pMF follows.
    """
    for name, value in (("half_life_images", half_life_images), ("batch", batch)):
        if value <= 0:
            raise UserError(f"the moving average's {name} is {value}; it must be positive")
    if ramp is None:
        return 0.5 ** (batch / half_life_images)
    return 0.5 ** (batch / max(min(half_life_images, ramp * images_seen), 1e-8))
