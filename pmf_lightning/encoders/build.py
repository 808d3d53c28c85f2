"""Build encoders from their configurations: those that an objective requests, and those of evaluation."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hydra.utils import get_class

from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Encoder
from pmf_lightning.encoders.battery.battery import Battery
from pmf_lightning.encoders.battery.real import real_features
from pmf_lightning.objectives.base import EncoderRequest
from pmf_lightning.pipeline.parts import build_part
from pmf_lightning.utils.errors import UserError, suggestions


def build_encoders(
    request: EncoderRequest,
    group: Mapping[str, Any],
    source: DataSource,
    cache_dir: str | None,
    decoder: Any = None,
    device: torch.device | str = "cpu",
) -> Encoder | dict[str, Encoder]:
    """Return the encoders that an objective requests: a dict by name, the single one of the group, or a battery.

    ``group`` is the section ``request.group`` of the configuration. Encoders that depend on the data are completed
    last, after the weights of all others are loaded. A battery decodes latents by ``decoder``, and measures real images
    on ``device``; encoders are returned on the CPU. Raises UserError for weights that are missing or do not fit, a name
    without a configuration, or data that an encoder does not take.
    """
    if request.target is not None:
        return battery_with_targets(request, group, source, cache_dir, decoder, device)
    if request.names is None:
        return _checked(complete(build_part(request.group, group), source, cache_dir), request.group, source)
    return _named(group, request.group, request.names, source, cache_dir)


def make_battery(
    group: Mapping[str, Any],
    names: Sequence[str] | None,
    source: DataSource,
    cache_dir: str | None,
    decoder: Any = None,
) -> Battery:
    """Return a battery of the members ``names`` of ``group``, the section ``battery`` (None: all of them).

    Raises UserError as ``build_encoders`` does.
    """
    members = group["members"]
    chosen = list(members) if names is None else names
    return Battery(_named(members, "battery.members", chosen, source, cache_dir), decoder)


def count_weights(names: Sequence[str], members: Mapping[str, Any], source: DataSource) -> dict[str, int | None]:
    """Return the numbers of weights of encoders of a battery, counted without them; None if that is not possible.

    Raises UserError for a name without a configuration.
    """
    counted = {}
    for name in names:
        if name not in members:
            raise UserError(f"battery.members.{name}: there is no such encoder; {suggestions(name, list(members))}")
        count = getattr(get_class(members[name]["_target_"]), "count", None)
        counted[name] = None if count is None else count(members[name], source)
    return counted


def battery_with_targets(
    request: EncoderRequest,
    group: Mapping[str, Any],
    source: DataSource,
    cache_dir: str | None,
    decoder: Any = None,
    device: torch.device | str = "cpu",
) -> Battery:
    """Return the members that an objective requests, with what it compares their features with as ``targets``.

    Raises UserError as ``build_encoders`` does, and for real features that are missing or do not fit.
    """
    battery = make_battery(group, request.names, source, cache_dir, decoder).to(device)
    real = real_features(battery, group["reference"], source, request.needs, cache_dir, request.held_out)
    try:
        battery.targets = {name: request.target(features, source.classes) for name, features in real.items()}
    except ValueError as error:
        raise UserError(f"battery: {error}") from error
    return battery.to("cpu")


def _named(
    group: Mapping[str, Any], key: str, names: Sequence[str], source: DataSource, cache_dir: str | None
) -> dict[str, Encoder]:
    for name in names:
        if name not in group:
            raise UserError(f"{key}.{name}: there is no such encoder; {suggestions(name, list(group))}")
    parts = {name: build_part(f"{key}.{name}", group[name]) for name in names}
    made = {name: complete(part, source, cache_dir) for name, part in parts.items()}
    return {name: _checked(encoder, f"{key}.{name}", source) for name, encoder in made.items()}


def complete(part: Any, source: DataSource | None, cache_dir: str | None) -> Any:
    """Return an encoder; one that depends on the data is ``_partial_`` in its configuration and gets ``source`` here.

    Raises UserError if it needs data and there are none.
    """
    if not isinstance(part, partial):
        return part
    if source is None:
        name = part.keywords.get("name") or part.func.__name__
        raise UserError(f"extractor={name}: it is trained on the data at hand; set data=")
    return part(source=source, cache_dir=cache_dir)


def _checked(encoder: Any, key: str, source: DataSource) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"{key}: {type(encoder).__name__} is no encoder; derive it from pmf_lightning.encoders.base.Encoder"
        )
    encoder.check(source.channels, source.resolution)
    return encoder
