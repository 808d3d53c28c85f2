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
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryTracker(TorchDispatchMode):
    """Context that tracks ``now``, the bytes of storages created inside and still alive, and ``peak``, its maximum."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}  # by address, until the storage is freed
        self._results: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _leaves((*args, *(kwargs or {}).items()))
        self._note(given, made_here=False)
        # All blocks run the same operations: on the meta device, a cached result shape replaces the call.
        key = (func, *((x.shape, x.stride(), x.dtype, x.is_meta) if isinstance(x, Tensor) else x for x in given))
        if key in self._results and not any(isinstance(x, Tensor) and x._is_zerotensor() for x in given):
            shape, stride, dtype = self._results[key]
            result = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        else:
            result = func(*args, **(kwargs or {}))
            if self._is_plain(result):
                self._results[key] = result.shape, result.stride(), result.dtype
        self._note(_leaves((result,)), made_here=True)
        return result

    def _is_plain(self, result) -> bool:
        """Return whether a result is one new tensor on the meta device, and no symbolic zero of forward mode."""
        if not isinstance(result, Tensor) or not result.is_meta or result._is_zerotensor():
            return False
        return result.untyped_storage()._cdata not in self._known

    def _note(self, leaves: list, made_here: bool) -> None:
        for storage in [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]:
            address = storage._cdata
            if address not in self._known:
                size = storage.nbytes() if made_here else 0
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


def _leaves(values) -> list:
    """Flatten lists and tuples, each preceded by its length; other values are preceded by their types."""
    leaves: list = []
    for value in values:
        if isinstance(value, Tensor):
            leaves.append(value)
        elif isinstance(value, list | tuple):
            leaves += [len(value), *_leaves(value)]
        else:
            leaves += [type(value), value]
    return leaves
