"""Parameter groups from the ``optim_kinds`` of a model's modules, and Adam and AdamW over these groups."""

from collections.abc import Sequence

import torch
from torch import nn

from pmf_lightning.optim.muon_adam import KINDS
from pmf_lightning.utils.precision import Number


def parameter_groups(module: nn.Module) -> list[dict]:
    """Group the trainable parameters by the tags of their modules, in the order of the module.

    A module that owns parameters has a dictionary ``optim_kinds`` from parameter name to "muon" or "adam". (The tag is
    on the module, because copies of a parameter lose their attributes.) Empty groups are omitted. A missing or unknown
    tag, or a Muon tag on a parameter that is not a matrix, raises ValueError with the name of the parameter.
    """
    members = {kind: {} for kind in KINDS}
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full = f"{prefix}.{name}" if prefix else name
            kind = getattr(owner, "optim_kinds", {}).get(name)
            if kind not in KINDS:
                raise ValueError(
                    f"parameter {full} has optim_kind {kind!r}; its module must set one of {', '.join(KINDS)}"
                )
            if kind == "muon" and parameter.ndim != 2:
                raise ValueError(f"parameter {full} of shape {tuple(parameter.shape)} is no matrix; tag it adam")
            members[kind][parameter] = None  # a dictionary, so that a shared parameter is listed once
    return [{"params": list(parameters), "kind": kind} for kind, parameters in members.items() if parameters]


def adam(groups: list[dict], lr: Number, betas: Sequence[Number], eps: Number) -> torch.optim.Adam:
    """Return torch's Adam (Kingma and Ba 2015) without weight decay; the kinds of the groups are ignored."""
    return torch.optim.Adam(groups, lr=lr, betas=tuple(betas), eps=eps)


def adamw(
    groups: list[dict], lr: Number, betas: Sequence[Number], eps: Number, weight_decay: Number
) -> torch.optim.AdamW:
    """Return torch's AdamW (Loshchilov and Hutter 2019); every parameter decays, as in optax.adamw without a mask."""
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
