"""How fast this process multiplies large matrices: the peak that a training step can be held against."""

import torch

from pmf_lightning.benchmarks.race import milliseconds

SIDES = {"cpu": 2048, "cuda": 8192}
PRODUCTS = 10


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations per second of square products, the best of several, in the dtype of the step."""
    side = SIDES.get(device.type, 4096)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = min(milliseconds(lambda: a @ a) for _ in range(PRODUCTS))
    return 2 * side**3 / (best / 1e3)
