"""Activation checkpointing: blocks save only their inputs and are recomputed in the backward pass.

It saves most of the activation memory for a third more arithmetic of the values. It does not work with forward-mode
derivatives (PyTorch issue 129293), so a block with a tangent runs without it. Training then has to compute values and
derivative in two passes (objectives/jvp/derivative.py).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pmf_lightning.utils.blocks import blocks_of


def recompute_blocks(network: nn.Module) -> int:
    """Enable recomputation for every transformer block of ``network``; return the number of blocks.

    Weights, their names and all outputs are unchanged.
    """
    blocks = blocks_of(network)
    for block in blocks:
        block.forward = _checkpointed(block.forward)
    return len(blocks)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(forward)
    def run(x: Tensor, *others: Any) -> Tensor:
        if not torch.is_grad_enabled() or type(x) is not Tensor:
            return forward(x, *others)
        # The blocks read no global random numbers (dropout is keyed), so there is no state to restore.
        return checkpoint(forward, x, *others, use_reentrant=False, preserve_rng_state=False)

    return run
