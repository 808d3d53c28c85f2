"""The repeated blocks of a network, which are compiled once and recomputed with activation checkpointing."""

from torch import nn


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the modules of ``network`` whose class sets ``is_block``, in their order."""
    return [module for module in network.modules() if getattr(module, "is_block", False)]
