"""Adam over the groups that MuonAdam takes: the baseline optimiser, for all parameters alike."""

from collections.abc import Sequence

import torch

from pmf_lightning.precision import Number


def adam(groups: list[dict], lr: Number, betas: Sequence[Number], eps: Number) -> torch.optim.Adam:
    """Return torch's Adam (Kingma and Ba 2015) without weight decay; the kinds of the groups do not matter to it."""
    return torch.optim.Adam(groups, lr=lr, betas=tuple(betas), eps=eps)
