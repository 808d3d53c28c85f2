"""AdamW over the groups that MuonAdam takes: drifting's optimiser, for all parameters alike."""

from collections.abc import Sequence

import torch

from pmf_lightning.precision import Number


def adamw(
    groups: list[dict], lr: Number, betas: Sequence[Number], eps: Number, weight_decay: Number
) -> torch.optim.AdamW:
    """Return torch's AdamW (Loshchilov and Hutter 2019); every parameter decays, as in optax.adamw without a mask."""
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
