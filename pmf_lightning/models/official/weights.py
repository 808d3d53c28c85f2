"""Official weights into our backbone and out of it: names are mapped, and nothing is skipped in silence."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pmf_lightning.errors import UserError
from pmf_lightning.models.official.imf import IMF
from pmf_lightning.models.official.look import Look, look
from pmf_lightning.models.official.names import Family
from pmf_lightning.models.official.pmf import PMF
from pmf_lightning.models.vit import ViT

FAMILIES = (PMF, IMF)
PREFIX = "net."  # of every name in the released files
_MOST_LISTED = 6  # names of one kind of problem in an error


def official_name(name: str, family: Family = PMF) -> str:
    """Return the name that official PyTorch files of ``family`` give to our weight ``name``, without ``net.``."""
    return family.official_name(name)


def family_of(network: ViT) -> Family:
    """Return the family whose official architecture ``network`` has; UserError where it has none's."""
    bottleneck = not isinstance(network.patch_embedding.expand, nn.Identity)
    parts = (bottleneck, network.positions is not None, network.rope)
    for family, theirs in ((PMF, (True, True, "patches")), (IMF, (False, False, "sequence"))):
        if parts == theirs:
            return family
    bottleneck, positions, rope = parts
    raise UserError(
        f"no official weights have this architecture (bottleneck {'on' if bottleneck else 'off'}, "
        f"{'learned' if positions else 'no'} positions, rope={rope}): pMF's has all three (rope=patches), "
        "iMF's has bottleneck=null positions=none rope=sequence"
    )


def load_official(state_dict_or_path: Mapping[str, Tensor] | str | Path, network: ViT) -> ViT:
    """Load official weights of pMF or iMF into ``network`` in place and return it.

    Takes a flat state dict, or the path of a .pt or .pth file (read without executing pickled code); ``translate``
    says what may be absent. A head v whose weights the file lacks keeps the values that it had.

    Raises UserError where the file is no weights file, is of another family or size (named, with the model that it
    fits), lacks a weight, or holds one that the network does not know or that has another shape.
    """
    ours, _ = translate(read_official(state_dict_or_path), network)
    network.load_state_dict(ours, strict=False)
    return network


def read_official(source: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    """Return official weights by their names without the prefix ``net.``; a file is mapped into memory, not copied.

    Raises UserError for a file that is absent, cannot be read as plain tensors, or is no flat dictionary of them.
    """
    if isinstance(source, Mapping):
        return bare(source, "official weights")
    return bare(read_tensors(source), f"official weights {source}")


def bare(contents: object, name: str) -> dict[str, Tensor]:
    """Return the contents of an official file without the prefix ``net.``; UserError, naming ``name``, for others."""
    if not isinstance(contents, Mapping) or not all(isinstance(value, Tensor) for value in contents.values()):
        raise UserError(f"{name} are not a flat dictionary of tensors; give a pMF or iMF file")
    return {key.removeprefix(PREFIX): value for key, value in contents.items()}


def read_tensors(path: str | Path) -> object:
    """Read a file of torch.save without executing pickled code, on the CPU; UserError where that is impossible."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"official weights {path} do not exist; give the path of a pMF-*.pt or iMF-*.pth file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}); is it a .pt file?") from error


def recognise(weights: Mapping[str, Tensor]) -> Look:
    """Return family and sizes of official weights (names without ``net.``); UserError where they are of no family."""
    for family in FAMILIES:
        if family.mark in weights:
            return look(family, weights)
    marks = " nor ".join(f"{family.mark} ({family.name})" for family in FAMILIES)
    raise UserError(f"these are no official weights of pMF or iMF: they hold neither {marks}")


def translate(weights: Mapping[str, Tensor], network: ViT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return official weights under our names and shapes, and those that ``network`` has no use for.

    The v-heads serve training alone and are absent in the released files. Where the file has none, or the network has
    no head v, nothing of v is taken: also not the final v layer that iMF's files keep, meaningless without its blocks.
    Part of a head v is never taken. RoPE buffers are recomputed and appear nowhere.

    Raises UserError as ``load_official`` does. Values are not looked at: meta tensors will do.
    """
    ours, seen = family_of(network), recognise(weights)
    weights = {key: value for key, value in weights.items() if key not in seen.family.recomputed}
    state = network.state_dict()
    names = {ours.official_name(name): name for name in state}
    expected = {key: ours.to_official(name, state[name]) for key, name in names.items()}
    wanted = look(ours, expected)
    if seen.differs(wanted):
        raise UserError(_another(seen, wanted))
    weights, expected, unused = _without_half_heads(weights, expected)
    _check(weights, expected, ours)
    return {names[key]: ours.from_official(names[key], value) for key, value in weights.items()}, unused


def official_weights(
    network: ViT,
    prefix: str = PREFIX,
    inference: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    aside: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the weights of ``network`` under official names and in official shapes; the tensors share its memory.

    Args:
        prefix: of every name; the released files have ``net.``.
        inference: leave the v-heads out, as the released files do. pMF's leave the final v layer out too; iMF's keep
            it, and the official code refuses a file without it although sampling never reads it. Where ``network`` has
            no head v, it is written as it starts (norm 1, the rest 0).
        weights: values by our names to write instead of the network's own, such as an average's.
        aside: official weights that ``translate`` found no use for, to write too.

    pMF's RoPE buffer is not written: the official code recomputes it. Raises UserError as ``family_of`` does.
    """
    family = family_of(network)
    weights = official_tensors(network, network.state_dict() if weights is None else weights)
    if family.keeps_v_layer and "v" not in network.heads:
        weights |= _fresh_v_layer(weights)
    weights |= aside or {}
    if inference:
        dropped = ("v_heads.",) if family.keeps_v_layer else ("v_heads.", "v_final_layer.")
        weights = {name: value for name, value in weights.items() if not name.startswith(dropped)}
    return {f"{prefix}{name}": value for name, value in weights.items()}


def official_tensors(network: ViT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` (weights or gradients, by our weight names) under official names and in official shapes."""
    family = family_of(network)
    return {family.official_name(name): family.to_official(name, value) for name, value in tensors.items()}


def _fresh_v_layer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layer = {name: value for name, value in weights.items() if name.startswith("u_final_layer.")}
    return {
        name.replace("u_", "v_", 1): torch.ones_like(value) if ".norm." in name else torch.zeros_like(value)
        for name, value in layer.items()
    }


def _without_half_heads(
    weights: dict[str, Tensor], expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Take head v out of what a file has and what is expected of it, unless both have it; return also what was cut."""
    there = [any(key.startswith("v_heads.") for key in keys) for keys in (weights, expected)]
    lone_layer = not any(there) and _holds(weights, "v_") and _holds(expected, "v_")  # a head v of no blocks
    if all(there) or lone_layer:
        return weights, expected, {}
    cut = {key: value for key, value in weights.items() if key.startswith("v_") and (there[0] or key in _V_LAYER)}
    return (
        {key: value for key, value in weights.items() if key not in cut},
        {key: value for key, value in expected.items() if not key.startswith("v_")},
        cut,
    )


_V_LAYER = {f"v_final_layer.{end}" for end in ("norm.weight", "linear._flax_linear.weight", "linear._flax_linear.bias")}


def _holds(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], family: Family) -> None:
    """Raise UserError that names missing and unexpected weights and those of another shape."""
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    problems = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "of another shape": shapes,
    }
    listed = "; ".join(f"{what}: {_few(names)}" for what, names in problems.items() if names)
    if listed:
        raise UserError(
            f"these are not the official {family.name} weights of this network ({listed}); choose the model they fit"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _another(seen: Look, wanted: Look) -> str:
    remedy = f"choose model={seen.preset}" if seen.preset else "choose the model that it fits"
    if seen.preset and seen.preset == wanted.preset:
        remedy += " with data of the file's size, channels and classes"
    return f"this file looks like {seen}, the network is {wanted}; {remedy}, or another file"


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file: its own format since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
