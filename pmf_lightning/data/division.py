"""How the rows of a step are divided over devices and micro-batches."""

from pmf_lightning.utils.errors import UserError


def micro_batches(batch: int, micro_batch: int | None, devices: int) -> int:
    """Return the micro-batches per device and step; UserError if sizes do not divide.

    ``batch`` counts the rows of a step over all devices, ``micro_batch`` those of a forward pass of a device (None: its
    full share).
    """
    share, rest = divmod(batch, devices)
    if rest:
        near = " or ".join(f"batch={size}" for size in (batch - rest, batch - rest + devices) if size)
        raise UserError(f"batch={batch} does not divide over {devices} devices: set {near}")
    micro = share if micro_batch is None else micro_batch
    if share % micro:
        near = " or ".join(f"micro_batch={size}" for size in _nearest_divisors(share, micro))
        raise UserError(
            f"micro_batch={micro} does not divide the {share} images of a device "
            f"(batch={batch}, devices={devices}): set {near}"
        )
    return share // micro


def _nearest_divisors(number: int, size: int) -> list[int]:
    """Return the nearest divisors of ``number`` below and above ``size``, which is not a divisor itself."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below, above = [d for d in divisors if d < size], [d for d in divisors if d > size]
    return below[-1:] + above[:1]
