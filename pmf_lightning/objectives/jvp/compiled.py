"""torch.compile for the passes of a training step, which fuses the operations between matrix products.

Blocks are compiled, not networks: all blocks of one kind run the same compiled code with their own weights, so the time
to compile does not grow with depth. What is between blocks runs eagerly. A block with a tangent is compiled together
with its derivative and tape (forward_mode.py), because a tensor subclass cannot enter compiled code. Weights and their
names are unchanged, so checkpoints are independent of compilation.

The number of rows changes in every pass and is dynamic. A pass of a single row runs eagerly, since the compiler would
make a separate version for it, at any step.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pmf_lightning.objectives.jvp.forward_mode import Dual, Region, derivative, through
from pmf_lightning.utils.blocks import blocks_of


class CompiledNetwork:
    """A network whose blocks, the modules with ``is_block``, are compiled at first use.

    ``network`` itself runs eagerly: its blocks are replaced during calls of this object only.

    Args:
        network: the backbone.
        backend: of torch.compile; "inductor" runs fast, "aot_eager" compiles fast and runs no faster than eager mode.

    Raises ValueError for a network without such modules.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor"):
        self.network, self.classes = network, network.classes
        blocks = blocks_of(network)
        if not blocks:
            raise ValueError(f"{type(network).__name__} has no module with is_block, which could be compiled")
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_no_missing_gpu)
        values, both = (torch.compile(run, backend=backend, dynamic=False) for run in (_values, _values_and_tangents))
        self._blocks = {block: _compiled(block.forward, values, both) for block in blocks}

    def __call__(
        self,
        image: Tensor,
        conditions: Mapping[str, Tensor],
        heads: Iterable[str] | None = None,
        attention: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the fields of the requested heads."""
        differentiated = torch._C._functorch.peek_interpreter_stack() is not None  # by torch.func.jvp, form two_pass
        if image.shape[0] == 1 or differentiated:
            return self.network(image, conditions, heads=heads, attention=attention)
        with self._compiled_blocks():
            return self.network(image, conditions, heads=heads, attention=attention)

    @contextmanager
    def _compiled_blocks(self) -> Iterator[None]:
        own = {block: vars(block).get("forward") for block in self._blocks}  # that of activation checkpointing
        try:
            for block, forward in self._blocks.items():
                block.forward = forward
            yield
        finally:
            for block, forward in own.items():
                del block.forward
                if forward is not None:
                    block.forward = forward


def _compiled(forward: Callable[..., Tensor], values: Callable, both: Callable) -> Callable[..., Tensor]:
    """Return ``forward`` of a block, run by the compiled functions."""
    region = Region(_any_rows(partial(values, forward)), _any_rows(partial(both, forward)))

    def run(*args: Any) -> Tensor:
        if any(isinstance(arg, Dual) for arg in args):
            return through(region, args)
        return region.values(args)

    return run


def _is_no_missing_gpu(record: logging.LogRecord) -> bool:
    """Return False for torch's warning that no GPU was found, which a compilation for a CPU logs, True for others."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _any_rows(function: Callable) -> Callable:
    """Let the compiled ``function`` take any number of rows, the first dimension of the tensors in its arguments."""

    def run(*given: tuple) -> Any:
        for arg in chain(*given):
            if isinstance(arg, Tensor) and arg.dim():
                torch._dynamo.maybe_mark_dynamic(arg, 0)
        return function(*given)

    return run


def _values(forward: Callable[..., Tensor], args: tuple) -> Tensor:
    return forward(*args)


def _values_and_tangents(forward: Callable[..., Tensor], args: tuple, tangents: tuple) -> tuple[Tensor, Tensor]:
    (value,), tangent = derivative(lambda *args: (forward(*args),), args, tangents)
    return value, tangent
