"""Names of weights without what wrappers put into them: DataParallel and DDP, torch.compile, FSDP, checkpointing."""

from collections.abc import Mapping
from typing import Any

from pmf_lightning.utils.errors import UserError

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(weights: Mapping[str, Any], source: str = "these weights") -> dict[str, Any]:
    """Return ``weights`` without the parts of their names that are wrappers, wherever these stand and how often.

    Raises UserError, naming ``source``, where two weights would get one name.
    """
    names = {name: _bare(name) for name in weights}
    found = {names[name]: value for name, value in weights.items()}
    if len(found) < len(names):
        again = [new for new in found if sum(new == other for other in names.values()) > 1]
        raise UserError(f"{source}: {again[0]} is there twice, as weights of a wrapped and of a bare network; keep one")
    return found


def _bare(name: Any) -> Any:
    """Return a name without its wrappers; what is no text stays as it is."""
    if not isinstance(name, str):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
