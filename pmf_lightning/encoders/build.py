"""Build encoders from their configurations: those that an objective requests, and those of evaluation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config.compose import one_line
from pmf_lightning.data.dataset import DataSource
from pmf_lightning.encoders.base import Encoder
from pmf_lightning.objectives.base import EncoderRequest
from pmf_lightning.utils.errors import UserError, suggestions
from pmf_lightning.utils.hydra_compat import instantiate


def build_encoders(
    request: EncoderRequest, group: Mapping[str, Any], source: DataSource, cache_dir: str | None
) -> Encoder | dict[str, Encoder]:
    """Return the encoders that an objective requests: a dict by name, or the single one of the group.

    ``group`` is the section ``request.group`` of the configuration. Encoders that depend on the data are completed
    last, after the weights of all others are loaded. Raises UserError for weights that are missing or do not fit, a
    name without a configuration, or data that an encoder does not take.
    """
    key = request.group
    if request.names is None:
        return _checked(complete(_instantiate(group, key), source, cache_dir), key, source)
    for name in request.names:
        if name not in group:
            raise UserError(f"{key}.{name}: there is no such encoder; {suggestions(name, list(group))}")
    parts = {name: _instantiate(group[name], f"{key}.{name}") for name in request.names}
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


def _instantiate(config: Any, key: str) -> Any:
    try:
        return instantiate(config, _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = one_line(cause)
        own = isinstance(cause, UserError) or message.startswith(f"{key}.")
        raise UserError(message if own else f"{key}: {message}") from error
