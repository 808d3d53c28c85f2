"""Host memory beside a GPU: page-locked tensors, and copies of tensors that are made while the GPU computes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_on_host(like: Tensor) -> Tensor:
    """Return an uninitialised tensor in host memory; page-locked for a CUDA tensor, so that copies need not wait."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)


class HostCopies:
    """Copies tensors to host memory, into the same buffers each time.

    On a CUDA device the copies run on a stream of their own, beside the kernels of the next step; the host waits in
    ``finish`` alone. The tensors must not change before. Elsewhere ``start`` waits for the copies.
    """

    def __init__(self):
        self._buffers: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None
        self._begun = False

    def start(self, tensors: Sequence[Tensor]) -> None:
        """Begin to copy ``tensors``, whose number, shapes and device are the same in all calls."""
        self._buffers = self._buffers or [empty_on_host(tensor) for tensor in tensors]
        self._begun = True
        if not tensors[0].is_cuda:
            self._copy(tensors)
            return
        self._stream = self._stream or torch.cuda.Stream(tensors[0].device)
        self._stream.wait_stream(torch.cuda.current_stream(tensors[0].device))
        with torch.cuda.stream(self._stream):
            self._copy(tensors)
        self._done = self._stream.record_event()

    def finish(self) -> list[Tensor] | None:
        """Return the copies, once complete, of the last ``start``; None if they were returned before."""
        if not self._begun:
            return None
        if self._done is not None:
            self._done.synchronize()
        self._begun = False
        return self._buffers

    def _copy(self, tensors: Sequence[Tensor]) -> None:
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
