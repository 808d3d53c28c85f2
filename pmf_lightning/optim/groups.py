"""Parameter groups from the tags that a model's modules carry; names are never parsed."""

from torch import nn

from pmf_lightning.optim.muon_adam import KINDS


def parameter_groups(module: nn.Module) -> list[dict]:
    """Split the trainable parameters by the tags of their modules, in the order of the module.

    A module that owns parameters has a dictionary ``optim_kinds`` from parameter name to "muon" or "adam". (The tag is
    the module's and not the parameter's, because copies of a parameter lose their attributes.) Groups without
    parameters are left out. A missing or unknown tag, or a Muon tag on a parameter that is not a matrix, raises
    ValueError with the name of the parameter.
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
