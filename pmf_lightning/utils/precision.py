"""Kinds of numbers: what a configuration may write, and where half precision must not be used."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

Number = float | int  # YAML writes 1 where it means 1.0


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged where it is wider: sums, norms and softmax never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(like: Tensor) -> AbstractContextManager:
    """Return a context that keeps autocast from the device of ``like``; the meta device knows none to be kept from."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


@contextmanager
def full_products() -> Iterator[None]:
    """Multiply float32 matrices as float32, whatever ``matmul_precision`` says: differences of products would lose most
    of TF32's ten bits.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
