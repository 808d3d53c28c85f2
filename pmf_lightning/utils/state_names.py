"""Remove wrapper prefixes (DataParallel, DDP, torch.compile, FSDP, checkpointing) from names of weights."""

from collections.abc import Mapping
from typing import Any

from pmf_lightning.utils.errors import UserError

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(weights: Mapping[str, Any], source: str = "these weights") -> dict[str, Any]:
    """Return ``weights`` with all wrapper parts removed from their names, at any position.

    Raises UserError, naming ``source``, if two weights would get the same name.
    """
    names = {name: _bare(name) for name in weights}
    found = {names[name]: value for name, value in weights.items()}
    if len(found) < len(names):
        again = [new for new in found if sum(new == other for other in names.values()) > 1]
        raise UserError(
            f"{source}: {again[0]} occurs twice, with and without the prefix of a wrapped network; remove one"
        )
    return found


def _bare(name: Any) -> Any:
    """Return a name without its wrappers; a key that is not a string is unchanged."""
    if not isinstance(name, str):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
