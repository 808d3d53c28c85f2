"""Read files of official weights without executing pickled code, and select one of their sets of weights."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.serialization import safe_globals

from pmf_lightning.utils.errors import UserError
from pmf_lightning.utils.precision import Number
from pmf_lightning.utils.state_names import unwrapped
from pmf_lightning.utils.tensor_files import load_tensors

PREFIX = "net."  # prefix of every name in the released files
# Sets of weights in a file of JiT: averages with decays 0.9999 (the default) and 0.9996, and the raw weights.
SETS = ("model_ema1", "model_ema2", "model")
_FD_LOSS_TABLE = "y_embedder.embedding_table.embedding.weight"
DECAYS = {"0.9999": SETS[0], "0.9996": SETS[1]}  # decay -> set, as another way to name it


def read_official(source: Mapping[str, object] | str | Path, weights: str | None = None) -> dict[str, Tensor]:
    """Return official weights by their names without the prefix ``net.``; a file is memory-mapped, not copied.

    ``weights`` selects one of ``SETS`` in a JiT checkpoint; None is the first. Raises UserError for a file that is
    missing, cannot be read as plain data, or is neither a JiT checkpoint nor a flat dictionary of tensors.
    """
    if isinstance(source, Mapping):
        return bare(source, "official weights", weights)
    return bare(read_tensors(source), f"official weights {source}", weights)


def read_tensors(path: str | Path) -> object:
    """Read a torch.save file on the CPU without executing pickled code; UserError if that is impossible.

    It may hold tensors, plain data, and an argparse.Namespace as in JiT's files. Other classes are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"official weights {path} do not exist; give the path of a pMF-*.pt, iMF-*.pth or JiT's checkpoint-*.pth"
        )
    try:
        with safe_globals([Namespace]):
            return load_tensors(path, mmap=True)
    except Exception as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} cannot be read as weights: it contains {foreign[1]}, whose code would run; if you trust "
                "the file, load it yourself and save only its tensors"
            ) from error
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}); is it a .pt file?") from error


def bare(contents: object, name: str, weights: str | Number | None = None, key: str = "weights") -> dict[str, Tensor]:
    """Return the weights in the contents of an official file, without the prefix ``net.``.

    Args:
        contents: the contents of the file.
        name: name of the file in errors.
        weights: one of ``SETS``, in a file that holds them; None is the first, or the only one.
        key: name of ``weights`` in errors.

    Raises UserError for other contents or a missing set.
    """
    sets = sets_in(contents)
    weights = DECAYS.get(str(weights), weights) if sets else weights
    if weights is not None and weights not in sets:
        held = f"hold {', '.join(sets)}: choose one of them" if sets else f"hold one set of weights; leave {key} out"
        raise UserError(f"{key}={weights}: {name} {held}")
    if chosen := chosen_set(contents, weights):
        contents = contents[chosen]
    if not isinstance(contents, Mapping) or not all(isinstance(value, Tensor) for value in contents.values()):
        remedy = f"choose {key}={sets[0]}" if sets and not chosen else "give a file of pMF, iMF or JiT"
        raise UserError(f"{name} are not a flat dictionary of tensors; {remedy}")
    return fd_loss_names({key.removeprefix(PREFIX): value for key, value in unwrapped(contents, name).items()})


def chosen_set(contents: object, weights: str | Number | None) -> str | None:
    """Return the name of the set ``weights`` in the contents of a file: None is the first, or the only one.

    None is returned for a file of one flat set. JiT's files hold three sets, those of FD-loss and RDM only "model".
    """
    sets = sets_in(contents)
    if weights is None:
        return sets[0] if len(sets) == 1 or SETS[0] in sets else None
    return DECAYS.get(str(weights), str(weights)) if sets else None


def fd_loss_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert pMF's and iMF's weights as FD-loss and RDM name them to the names and shapes of the official files.

    They write ".linear." for "._flax_linear.", ".embedding." for "._flax_embedding.", and pMF's tokens as [n, width]
    (FD-loss, utils/checkpoint_util.py:278-303). Other weights, JiT's included, are returned unchanged.
    """
    if _FD_LOSS_TABLE not in weights:
        return dict(weights)
    pixels = "x_embedder.proj1.weight" in weights  # pMF; iMF's official tokens are [n, width] too
    found = {}
    for name, value in weights.items():
        name = re.sub(r"\.(linear|embedding)\.(weight|bias)$", r"._flax_\1.\2", name)
        found[name] = value[None] if pixels and name.endswith("_tokens") and value.ndim == 2 else value
    return found


def sets_in(contents: object) -> list[str]:
    """Return the ``SETS`` in the contents of a file."""
    return [name for name in SETS if isinstance(contents, Mapping) and isinstance(contents.get(name), Mapping)]
