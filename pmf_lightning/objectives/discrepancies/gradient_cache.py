"""Gradient caching: the features of many images, and the gradient through them, at the memory of a few.

RDM (arXiv 2607.02375; train/grad_caching.py). A discrepancy does not decompose over images, so its gradient needs the
features of the complete batch. Here the forward pass keeps the features of each part and no graph. The backward pass
repeats one part at a time. The sum is the gradient of the complete batch, and the parameters get it in one backward
pass, so that averaging over devices works as ever.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Features = dict[str, Tensor]  # encoder -> [rows, features]


def features_in_parts(features_of: Callable[[slice], Features], rows: int, size: int | None = None) -> Features:
    """Return the features of ``rows`` images, of which ``size`` at a time are in memory with their graph.

    Args:
        features_of: maps a slice of the rows to their features. It runs twice for each part and must give the same
            features both times: no dropout, and noise that is drawn before.
        rows: number of rows.
        size: rows of a part; None, or ``rows`` and more: one part, computed once.
    """
    if size is None or size >= rows:
        return features_of(slice(0, rows))
    slices = [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
    parts = [checkpoint(features_of, part, use_reentrant=False, preserve_rng_state=False) for part in slices]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
