"""Convert official weights to our backbones and back; names are mapped, and no weight is skipped silently."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pmf_lightning.models.drifting_vit import DriftingViT
from pmf_lightning.models.jit_vit import JiTViT
from pmf_lightning.models.vit import ViT
from pmf_lightning.utils.errors import UserError, some_of
from pmf_lightning.weights.drifting import generator_tensors, load_official_generator
from pmf_lightning.weights.families import IMF, JIT, PMF, SAME, WeightFormat, positions_are_trained
from pmf_lightning.weights.read import PREFIX, read_official
from pmf_lightning.weights.recognize import WeightsDescription, look

FAMILIES = (PMF, IMF, JIT)


def official_name(name: str, family: WeightFormat = PMF) -> str:
    """Return the name of our weight ``name`` in official PyTorch files of ``family``, without ``net.``."""
    return family.official_name(name)


def family_of(network: nn.Module) -> WeightFormat:
    """Return the family whose official architecture ``network`` has; UserError if there is none."""
    if isinstance(network, DriftingViT):
        raise UserError(
            "Drifting's official files are not PyTorch files; read them with weights.drifting.generator_arrays"
        )
    if not isinstance(network, ViT | JiTViT):
        raise UserError(f"no official weights have the architecture of {type(network).__name__}: give a ViT or JiTViT")
    bottleneck = not isinstance(network.patch_embedding.expand, nn.Identity)
    if isinstance(network, JiTViT):
        if bottleneck and network.context is not None:
            return JIT
        raise UserError("no official weights have this architecture: JiT's has a bottleneck and class tokens (context)")
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


def load_official(
    state_dict_or_path: Mapping[str, object] | str | Path, network: nn.Module, weights: str | None = None
) -> nn.Module:
    """Load official weights of pMF, iMF, JiT or Drifting's generator into ``network`` in place and return it.

    The source is a flat state dict, or the path of a .pt or .pth file (read without executing pickled code). See
    ``translate`` for weights that may be missing; a head v that the file lacks is left unchanged. A JiT checkpoint
    holds several sets: ``weights`` is "model_ema1" (None), "model_ema2" or "model". Files of FD-loss and RDM hold one
    of these families under slightly other names (see ``read.fd_loss_names``). Where their JiT has a trained position
    table, the table of ``network`` becomes a weight (``JiTViT.learn_positions``). Drifting's files are flax's .msgpack,
    or its folder; the names of a state dict of Drifting are joined with "/".

    Raises UserError if the file holds no weights, is of another family or size (named, with the model that it fits),
    lacks a weight, or holds a weight that is unknown to the network or has another shape.
    """
    if isinstance(network, DriftingViT):
        return _load_generator(state_dict_or_path, network, weights)
    official = read_official(state_dict_or_path, weights)
    fixed_positions = isinstance(network, JiTViT) and network.positions is None
    if fixed_positions and positions_are_trained(official):
        network.learn_positions()
    try:
        ours, _ = translate(official, network)
    except UserError:
        if fixed_positions:
            network.positions = None
        raise
    network.load_state_dict(ours, strict=False)
    return network


def _load_generator(
    state_dict_or_path: Mapping[str, object] | str | Path, network: DriftingViT, weights: str | None
) -> DriftingViT:
    if weights is not None:
        raise UserError(f"weights={weights}: official weights of drifting hold one set of weights; leave weights out")
    if not isinstance(state_dict_or_path, Mapping):
        return load_official_generator(state_dict_or_path, network)
    network.load_state_dict(generator_tensors(state_dict_or_path, network))
    return network


def recognise(weights: Mapping[str, Tensor]) -> WeightsDescription:
    """Return family and sizes of official weights (names without ``net.``); UserError if they are of no family."""
    for family in reversed(FAMILIES):  # JiT before pMF, whose mark is in JiT's files too
        if family.mark in weights:
            return look(family, weights)
    marks = " nor ".join(f"{family.mark} ({family.name})" for family in FAMILIES)
    raise UserError(f"these are not official weights of pMF, iMF or JiT: they have neither {marks}")


def translate(
    weights: Mapping[str, Tensor], network: nn.Module, without: Iterable[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (official weights under our names and shapes, official weights that ``network`` does not use).

    The v-heads are used in training only and are missing in the released files. If the file has none, or the network
    has no head v, no weight of v is used; this includes the final v layer in iMF's files, which is meaningless without
    its blocks. A head v is never used partially. RoPE buffers are recomputed and in neither result. Where JiT's
    position table is fixed, the file's must be present and equal ours, and is unused. Weights of ``network`` named in
    ``without`` are ignored on both sides: in neither result, and of any shape in the file.

    Raises the UserErrors of ``load_official``. Only the position table's values are read: meta tensors are allowed.
    """
    ours, seen = family_of(network), recognise(weights)
    ignored = {*seen.family.recomputed, *map(ours.official_name, without)}
    weights = {key: value for key, value in weights.items() if key not in ignored}
    seen = look(seen.family, weights)  # sizes that only ignored weights tell are not compared
    state, fixed = network.state_dict(), ours.fixed(network)
    names = {ours.official_name(name): name for name in state}
    expected = {key: ours.to_official(name, state[name]) for key, name in names.items()} | fixed
    expected = {key: value for key, value in expected.items() if key not in ignored}
    wanted = look(ours, expected)
    if seen.differs(wanted):
        raise UserError(_another(seen, wanted))
    unused: dict[str, Tensor] = {}
    if fixed and positions_are_trained(weights):
        raise UserError("its position table was trained, and that of this run is fixed; add backbone.positions=learned")
    if ours.head_v:
        weights, expected, unused = _without_half_heads(weights, expected)
    _check(weights, expected, ours)
    for key, value in fixed.items():
        _check_fixed(key, weights[key], value)
        unused[key] = weights[key]
    learned = {names[key]: value for key, value in weights.items() if key in names}
    return {name: ours.from_official(name, value) for name, value in learned.items()}, unused


def official_weights(
    network: nn.Module,
    prefix: str = PREFIX,
    inference: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    aside: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the weights of ``network`` under official names and in official shapes; the tensors share its memory.

    Args:
        network: the network.
        prefix: prefix of every name; the released files have ``net.``.
        inference: leave the v-heads out, like the released files. pMF's files also lack the final v layer. iMF's have
            it: the official code requires it although sampling never reads it. If ``network`` has no head v, the layer
            is written with its initial values (norm 1, the rest 0).
        weights: values by our names to write instead of the network's own, such as an average's.
        aside: the unused official weights from ``translate``, to write too.

    pMF's RoPE buffer is not written, because the official code recomputes it. JiT's position table is written, from
    ``aside`` or computed. Raises the UserErrors of ``family_of``.
    """
    family = family_of(network)
    weights = official_tensors(network, network.state_dict() if weights is None else weights)
    weights |= {name: value.to(weights[family.mark]) for name, value in family.fixed(network).items()}
    if family.keeps_v_layer and "v" not in network.heads:
        weights |= _fresh_v_layer(weights)
    weights |= aside or {}
    if inference:
        dropped = ("v_heads.",) if family.keeps_v_layer else ("v_heads.", "v_final_layer.")
        weights = {name: value for name, value in weights.items() if not name.startswith(dropped)}
    return {f"{prefix}{name}": value for name, value in weights.items()}


def official_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    """Return the weights of a file and the expected ones, both without head v unless both have it.

    The third value holds the weights of head v that were removed from those of the file.
    """
    there = [any(key.startswith("v_heads.") for key in keys) for keys in (weights, expected)]
    lone_layer = not any(there) and _holds(weights, "v_") and _holds(expected, "v_")  # a head v without blocks
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


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], family: WeightFormat) -> None:
    """Raise UserError naming missing and unexpected weights and those of another shape."""
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
    listed = "; ".join(f"{what}: {some_of(names)}" for what, names in problems.items() if names)
    if listed:
        raise UserError(
            f"these are not the official {family.name} weights of this network ({listed}); choose the model they fit"
        )


def _check_fixed(name: str, theirs: Tensor, ours: Tensor) -> None:
    """Raise UserError if fixed values of a file differ from ours."""
    difference = 0.0 if theirs.is_meta else (theirs.cpu().float() - ours).abs().max().item()
    if not difference <= SAME:
        raise UserError(
            f"{name} differs from this network's fixed values (by up to {difference:.3g}); use an official file"
        )


def _another(seen: WeightsDescription, wanted: WeightsDescription) -> str:
    remedy = f"choose model={seen.preset}" if seen.preset else "choose the model that it fits"
    if seen.preset and seen.preset == wanted.preset:
        remedy += " with data of the file's size, channels and classes"
    return f"this file looks like {seen}, the network is {wanted}; {remedy}, or another file"
