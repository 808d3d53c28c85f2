"""Parameter groups from the ``optim_kinds`` of a model's modules. Optimizers other than MuonAdam ignore the kinds."""

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from pmf_lightning.optim.muon_adam import KINDS


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
                raise ValueError(f"parameter {full} of shape {tuple(parameter.shape)} is not a matrix; tag it adam")
            members[kind][parameter] = None  # a dictionary, so that a shared parameter is listed once
    return [{"params": list(parameters), "kind": kind} for kind, parameters in members.items() if parameters]


def make_optimizer(make: Callable[[list[dict]], Optimizer], module: nn.Module) -> Optimizer:
    """Return what ``make`` builds from the parameter groups of ``module``; TypeError if it is no torch optimizer."""
    optimizer = make(parameter_groups(module))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"its _target_ builds a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer
