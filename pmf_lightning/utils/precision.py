"""Numerical precision: the number type of configurations, and regions where half precision must not be used."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

Number = float | int  # YAML writes 1 where it means 1.0


def at_least_float32(x: Tensor) -> Tensor:
    """Cast x to float32, or return it unchanged if it is wider. Sums, norms and softmax never use half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_float64(x: Tensor) -> Tensor:
    """Cast x to float64, on the CPU if its device (MPS) has no float64. Gradients flow back to x."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def no_autocast(like: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the device of ``like``. The meta device has no autocast."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


@contextmanager
def full_products() -> Iterator[None]:
    """Multiply matrices in full float32, regardless of ``matmul_precision``.

    Differences of products would lose most of TF32's ten bits.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
