"""Measure the peak bytes of tensors that are alive at once while a function runs, storage by storage.

The function may run on real tensors or on the meta device, where it needs neither memory nor arithmetic. The bytes are
those of a real run, without the allocator's rounding and the kernels' workspaces.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pmf_lightning.profiling.meta_results import MetaResults


class MemoryTracker(MetaResults):
    """Context that tracks ``now``, the bytes of storages created inside and still alive, and ``peak``, its maximum."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}  # by address, until the storage is freed

    def created(self, tensor: Tensor) -> None:
        """Count a new tensor, until its storage is freed."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._known:
            size = storage.nbytes()
            self._known[address] = weakref.ref(storage, partial(self._forget, address, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, address: int, size: int, _) -> None:
        del self._known[address]
        self.now -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Make scaled_dot_product_attention on the meta device save no attention weights, as on a CPU or GPU.

    The function is replaced, since a mode would not be active in blocks that the backward pass recomputes.
    """
    original = F.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function(args):  # a subclass calls this again with its plain tensors
            return handle_torch_function(attention, args, *args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]

    attention.__name__ = original.__name__
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak bytes of the tensors that ``work()`` creates; its result is dropped."""
    with fused_attention(), MemoryTracker() as live:
        work()
    return live.peak
